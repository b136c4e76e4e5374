// Scale is what muslin costs where there are many nodes. Its tests (`make scale`) measure the daemon among
// 10,000 leases, and etcd under 500 daemons' watches, in namespaces of this machine, and fail where a limit is
// missed.
//
// As a command it makes the load by itself, against any etcd, for developers:
//
//	go run ./bench/scale load --etcd-endpoints http://127.0.0.1:2379 --nodes 10000 --rate 1000 --for 1m
//	go run ./bench/scale fleet --etcd-endpoints http://127.0.0.1:2379 --count 125
package main
