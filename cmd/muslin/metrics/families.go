package metrics

import "github.com/prometheus/client_golang/prometheus"

// Kind is a metric's type.
type Kind string

const (
	Gauge     Kind = "gauge"
	Counter   Kind = "counter"
	Histogram Kind = "histogram"
)

// Family is a metric, without the label network, which all but those of the process have where the process has several.
type Family struct {
	Name   string
	Kind   Kind
	Labels []string
	Help   string

	process bool // it is the process's, not a network's
}

var families []*Family

func family(name string, kind Kind, help string, labels ...string) *Family {
	f := &Family{Name: "muslin_" + name, Kind: kind, Help: help, Labels: labels}
	families = append(families, f)
	return f
}

func processFamily(name string, kind Kind, help string, labels ...string) *Family {
	f := family(name, kind, help, labels...)
	f.process = true
	return f
}

// Families are all that there are, beside those of the Go runtime (go_) and of the process (process_), in the order of the docs.
func Families() []*Family { return families }

// The names are those of docs/metrics.md; they are an interface: metrics are added, never renamed or removed.
var (
	buildInfo  = processFamily("build_info", Gauge, "Always 1. The daemon's version and the kernel's release.", "version", "kernel")
	fileTaken  = processFamily("config_last_reload_successful", Gauge, "Whether the file of --config, as it was read last, was taken. Only with --config.")
	fileLoaded = processFamily("config_last_reload_success_timestamp_seconds", Gauge, "When the file of --config was taken last. Only with --config.")

	nodeInfo     = family("node_info", Gauge, "Always 1. What this node is in its network; empty until it is known.", "backend", "iface", "public_ip", "public_ipv6", "subnet", "subnet_ipv6", "tun")
	running      = family("running", Gauge, "Whether packets are carried.")
	since        = family("running_since_timestamp_seconds", Gauge, "From when on packets are carried, and counted. Absent before.")
	warnings     = family("warnings", Gauge, "Warnings that muslin status shows now.")
	mtu          = family("mtu_bytes", Gauge, "Largest inner packet. Absent until it is known.")
	stuckWorkers = family("stuck_workers", Gauge, "Workers that do not come to the end of a batch of packets.")
	featureOn    = family("feature_on", Gauge, "Whether a feature of the kernel is in use.", "feature")

	leaseExpiry  = family("lease_expiry_timestamp_seconds", Gauge, "When this node's lease expires unless it is renewed. Absent for a reservation, with a peers file, and before there is one.")
	storeInfo    = family("store_info", Gauge, "Always 1. Where leases are kept: etcd, embedded-etcd or peers-file.", "kind")
	storeHealthy = family("store_healthy", Gauge, "Whether the store answers and its watch stands. Absent until it is watched.")
	storeSeen    = family("store_revision", Gauge, "The store's revision up to which everything was seen. Absent until it is watched.")
	skipped      = family("skipped_leases", Gauge, "Keys in the store that are no peer of this node, by reason.", "reason")

	dropped   = family("dropped_packets_total", Counter, "Packets that were not delivered, by direction and reason.", "direction", "reason")
	completed = family("unfinished_checksum_packets_total", Counter, "Inner packets that came with a checksum which their sender had left to its NIC.")

	queuePackets = family("queue_packets_total", Counter, "Inner packets that a worker has written, those that the kernel refused included.", "family", "direction", "queue")
	queueBytes   = family("queue_bytes_total", Counter, "Bytes of the inner packets that a worker has written.", "family", "direction", "queue")
	batchPieces  = family("batch_pieces", Histogram, "Pieces that a worker reads in one go. A piece is what the kernel gives or takes in one: packets, or datagrams, of one flow.", "family", "direction")
	readPackets  = family("read_piece_packets", Histogram, "Packets in each piece that is read: outbound from the TUN device, inbound from the socket (UDP_GRO).", "family", "direction")
	writePackets = family("write_piece_packets", Histogram, "Packets in each piece that is written: outbound to the socket (UDP_SEGMENT), inbound to the TUN device.", "family", "direction")

	peers       = family("peers", Gauge, "Peers by state. A node of both address families is two peers.", "state")
	peersByWay  = family("peers_by_way", Gauge, "Peers by the way that packets take to them.", "way")
	peersBeyond = family("peers_without_series", Gauge, "Peers of which there are no series of their own here, because of --metrics-peers.")

	peerInfo      = family("peer_info", Gauge, "Always 1. What a peer is.", "peer", "public_ip", "backend", "way")
	peerUp        = family("peer_up", Gauge, "Whether a peer is heard, or answers. Absent while that is not known.", "peer")
	peerTxPackets = family("peer_transmit_packets_total", Counter, "Inner packets sent to a peer.", "peer")
	peerTxBytes   = family("peer_transmit_bytes_total", Counter, "Bytes of the inner packets sent to a peer.", "peer")
	peerRxPackets = family("peer_receive_packets_total", Counter, "Inner packets accepted from a peer.", "peer")
	peerRxBytes   = family("peer_receive_bytes_total", Counter, "Bytes of the inner packets accepted from a peer.", "peer")
	peerLastRx    = family("peer_last_receive_timestamp_seconds", Gauge, "When the last packet was accepted from a peer. Absent before the first.", "peer")
	peerRTT       = family("peer_round_trip_seconds", Gauge, "Round trip of a packet to a peer, smoothed. Absent while it is not known.", "peer")
	peerLoss      = family("peer_loss_ratio", Gauge, "Part of the requests that a peer was sent lately and did not answer, 0 to 1. Absent while it is not known.", "peer")
	peerPathMTU   = family("peer_path_mtu_bytes", Gauge, "Largest inner packet that the path to a peer takes. Absent while that is not known.", "peer")
	peerHandshake = family("peer_last_handshake_timestamp_seconds", Gauge, "When a peer's last WireGuard session was made. Absent before the first, and for other backends.", "peer")
)

// descs are the families' descriptions.
func descs(networks bool) map[*Family]*prometheus.Desc {
	all := make(map[*Family]*prometheus.Desc, len(families))
	for _, f := range families {
		labels := f.Labels
		if networks && !f.process {
			labels = append([]string{"network"}, labels...)
		}
		all[f] = prometheus.NewDesc(f.Name, f.Help, labels, nil)
	}
	return all
}
