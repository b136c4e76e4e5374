package main

import "github.com/spf13/pflag"

// asked is the daemon that a command asks, and of several networks in its process which one.
type asked struct {
	socket string
	net    string // empty: none was named
}

// register adds the flags; unnamed is what is asked where there are several networks, and none is named.
func (a *asked) register(fs *pflag.FlagSet, unnamed string) {
	fs.StringVar(&a.socket, "control", defaultControl, "unix `socket` of the daemon")
	fs.StringVar(&a.net, "net", "", "where a process runs several networks: the `name` of the one to ask (default: "+unnamed+")")
}
