//go:build linux

// Command vm boots Debian's own kernels in QEMU and runs the end-to-end suite inside:
//
//	go run ./bench/vm --bin bin/muslin 5.10             # one kernel, or several
//	go run ./bench/vm --bin bin/muslin --run TestLoss 6.1
//
// The processor is emulated, so that it works on machines that are virtual themselves; that is ten to twenty
// times slower than a real one, which the suite is told (MUSLIN_SLOW). A kernel comes as Debian's package from
// the mirror that this machine's apt uses, and everything else in the guest from this machine: the tools that
// the suite calls with their libraries, the test binary and muslin. The guest has no disk and no network card,
// and keeps nothing.
//
// The command changes nothing outside its directory (build/vm): packages are fetched with a configuration of
// its own, and are not installed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the command's flags.
type options struct {
	dir     string        // of the cache and the results
	bin     string        // muslin, static
	run     string        // which tests: a pattern as `go test -run` has it
	slow    int           // MUSLIN_SLOW in the guest
	limit   time.Duration // for each kernel
	kernels []string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "vm: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	suite := filepath.Join(o.dir, "e2e.test")
	if err := buildSuite(ctx, suite); err != nil {
		return err
	}
	var all []result
	var failed []string
	for _, name := range o.kernels {
		r, err := o.test(ctx, name, suite)
		if err != nil {
			return fmt.Errorf("kernel %s: %w", name, err)
		}
		if !r.passed() {
			failed = append(failed, name)
		}
		all = append(all, r)
	}
	summary := filepath.Join(o.dir, "kernels.md")
	if err := os.WriteFile(summary, []byte(markdown(all)), 0o644); err != nil {
		return err
	}
	fmt.Printf("\n%s\n(also in %s)\n", markdown(all), summary)
	if failed != nil {
		return fmt.Errorf("the suite failed on %s: the whole output is in %s/KERNEL/suite.log", strings.Join(failed, ", "), o.dir)
	}
	return nil
}

func parseOptions(args []string) (*options, error) {
	var o options
	flags := flag.NewFlagSet("vm", flag.ContinueOnError)
	flags.StringVar(&o.dir, "dir", "build/vm", "directory of downloaded kernels and of results")
	flags.StringVar(&o.bin, "bin", "bin/muslin", "muslin, as `make build` makes it")
	flags.StringVar(&o.run, "run", "", "run only the tests that match this pattern")
	flags.IntVar(&o.slow, "slow", 10, "by what factor the guest is slower than a real machine")
	flags.DurationVar(&o.limit, "limit", time.Hour, "how long one kernel may take")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	o.kernels = flags.Args()
	if len(o.kernels) == 0 {
		return nil, fmt.Errorf("give one or more kernels of: %s", strings.Join(kernelNames(), ", "))
	}
	for _, name := range o.kernels {
		if !slices.Contains(kernelNames(), name) {
			return nil, fmt.Errorf("no kernel %q: give one or more of: %s", name, strings.Join(kernelNames(), ", "))
		}
	}
	if _, err := os.Stat(o.bin); err != nil {
		return nil, fmt.Errorf("muslin: %w: run `make build`, or name it with --bin", err)
	}
	return &o, os.MkdirAll(o.dir, 0o755)
}

// test boots one kernel and runs the suite in it.
func (o *options) test(ctx context.Context, name, suite string) (result, error) {
	dir := filepath.Join(o.dir, name)
	k, err := fetchKernel(ctx, name, dir)
	if err != nil {
		return result{}, err
	}
	image := filepath.Join(dir, "initrd")
	if err := buildImage(ctx, image, guest{kernel: k, bin: o.bin, suite: suite, run: o.run, slow: o.slow, limit: o.limit}); err != nil {
		return result{}, err
	}
	defer os.Remove(image) // as large as all that is in it
	fmt.Printf("booting Linux %s (%s)\n", k.release, k.version)
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("not done within %v", o.limit))
	defer cancel()
	start := time.Now()
	out, err := boot(ctx, machine{vmlinuz: k.vmlinuz, initrd: image, dir: dir})
	if err != nil {
		return result{}, err
	}
	r, err := readResult(out)
	if err != nil {
		return result{}, fmt.Errorf("%w: see %s", err, filepath.Join(dir, consoleLog))
	}
	r.kernel, r.version, r.took = name, k.version, time.Since(start)
	return r, nil
}

// errCut says that the guest ended before it had said everything.
var errCut = errors.New("the guest ended before its end")
