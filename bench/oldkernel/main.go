//go:build linux && (amd64 || arm64)

// Command oldkernel runs a program so that the running kernel refuses it, errno for errno, what an older kernel
// did not have:
//
//	oldkernel --profile 3.10 muslin run --embedded-etcd …
//	oldkernel --list           # what is refused, and since which kernel it is there
//
// Most refusals are a seccomp filter's (filter.go), which sees a system call's number and the arguments in its
// registers. For what a pointer leads to, the filter asks a supervisor (supervisor.go), which reads the
// program's memory. The table of refusals is rows.go and syscalls.go, each row with its source.
//
// The program takes this process's place: it has its pid, its files, its signals. What it starts is refused the
// same. The supervisor is a child of it that keeps nothing open and ends with the last process of them.
//
// What cannot be had this way, the contents of netlink messages above all, is in docs/kernels.md.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "oldkernel: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("oldkernel", flag.ContinueOnError)
	name := flags.String("profile", "", "the kernel to play: one of "+profileNames())
	list := flags.Bool("list", false, "print the table of refusals, as Markdown")
	supervise := flags.Int("supervise", -1, "(internal) be the supervisor, told on this descriptor whom to supervise")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *list {
		fmt.Print(markdown())
		return nil
	}
	p, err := profileOf(*name)
	if err != nil {
		return err
	}
	if *supervise >= 0 {
		return superviseFrom(*supervise, p)
	}
	if flags.NArg() == 0 {
		return errors.New("give a program to run, with its arguments")
	}
	return launch(p, flags.Args())
}
