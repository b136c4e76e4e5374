// Package metrics holds what docs/grafana and docs/prometheus have to a real Prometheus that scrapes real daemons (`make test-metrics`).
// It is apart from the end-to-end suite because of what it needs: Debian's prometheus.
package metrics
