// Package hostile makes what nobody should send to an overlay's port, and sends it.
//
// The datagrams and what must become of each are in cases.go, the frames around them in packet.go, and flood.go
// sends them as fast as they go. The package knows the formats by their RFCs alone: it calls nothing of the daemon,
// so that a fault there cannot hide itself. It opens sockets only where it is told to, and starts no goroutine.
package hostile
