// Command plot draws what `muslin bench lab --out DIR` and `make soak` measured, as SVG:
//
//	go run ./bench/plot DIR            # results.json, soak.json or both in, charts beside them
//	go run ./bench/plot DIR docs/dir   # charts somewhere else
//
// It is no part of the daemon's binary, which the fonts and formats of a plotting library would make a quarter
// larger.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"

	"muslin/bench/compare"
	"muslin/bench/soak"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "plot: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return fmt.Errorf("give the directory of %s or %s, and perhaps another for the charts", compare.JSONFile, soak.JSONFile)
	}
	from, to := args[0], args[len(args)-1]
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	plot.DefaultFont = sans
	drawn := 0
	for _, source := range []func(from string) (map[string][]byte, error){benchmarks, soaked} {
		pictures, err := source(from)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(pictures)) {
			path := filepath.Join(to, name)
			if err := os.WriteFile(path, pictures[name], 0o644); err != nil {
				return err
			}
			fmt.Println(path)
			drawn++
		}
	}
	if drawn == 0 {
		return fmt.Errorf("%s holds nothing that a chart is made of", from)
	}
	return nil
}

// benchmarks draws the charts of which something was measured, by file name.
func benchmarks(from string) (map[string][]byte, error) {
	results, err := compare.Read(filepath.Join(from, compare.JSONFile))
	if err != nil {
		return nil, err
	}
	pictures := make(map[string][]byte)
	for _, c := range charts {
		svg, err := c.draw(results)
		if err != nil {
			return nil, fmt.Errorf("draw %s: %w", c.file, err)
		}
		if svg != nil {
			pictures[c.file] = svg
		}
	}
	return pictures, nil
}

func soaked(from string) (map[string][]byte, error) {
	results, err := soak.Read(filepath.Join(from, soak.JSONFile))
	if err != nil {
		return nil, err
	}
	svg, err := drawSoak(results)
	if err != nil {
		return nil, fmt.Errorf("draw the soak: %w", err)
	}
	return map[string][]byte{"soak.svg": svg}, nil
}
