// Package etcd is the only room that knows etcd: a lease.Store over its v3 API, and a single etcd
// server inside this process for networks that have none.
//
// Below <prefix>/subnets it writes leases and nothing else, because flannel nodes lose their peers over
// a foreign key there. It makes no decision about leases: that is package lease.
package etcd
