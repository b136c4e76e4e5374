//go:build linux

// Package link measures between two real nodes, over the live overlay and beside it over the bare
// underlay, so that what the overlay costs is seen: throughput and loss each way, round trips, the largest
// packet that passes. `muslin bench link` is its command.
//
// One node serves (Server), because a person there said so and for a limited time; the other measures
// (Measure) and decides what happens. Every measure is a TCP connection of its own, over the path that it
// measures, to the one port of the server:
//
//	client                                server
//	   │ ◄──────────── greeting: protocol, nonce │
//	   │ request: HMAC(token, nonce, job), job ► │
//	   │ ◄────────────── accept: MTU, rate, cookie, or why not
//	   │ the job: a stream one way, an echo, or orders about UDP datagrams
//
// The token never crosses the wire. Before a right request the server sends its greeting and nothing
// else; it answers UDP only from the address of an authenticated connection and with the cookie that went
// over that connection, and never with more bytes than it got. What it sends by itself (a stream, the loss
// and size measures towards the client) goes to such an address only. One client at a time; every
// connection, size, rate and time has a limit (wire.go).
//
// The room opens sockets and needs no root. It changes nothing on either host and knows nothing of the
// daemon: which addresses to measure, the command finds out.
package link
