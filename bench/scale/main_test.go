//go:build linux

package main

import (
	"fmt"
	"os"
	"testing"

	"muslin/bench/labtest"
)

// asCommand makes the test's binary the command: the tests start fleets of daemons with it.
const asCommand = "MUSLIN_SCALE_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	status := labtest.Main(m)
	if err := figures.print(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}
