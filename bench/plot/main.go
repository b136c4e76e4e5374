// Command plot draws what `muslin bench lab --out DIR` measured, as SVG:
//
//	go run ./bench/plot DIR            # results.json in, charts beside it
//	go run ./bench/plot DIR docs/dir   # charts somewhere else
//
// It is no part of the daemon's binary, which the fonts and formats of a plotting library would make a quarter
// larger.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"

	"muslin/bench/compare"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "plot: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return fmt.Errorf("give the directory of %s, and perhaps another for the charts", compare.JSONFile)
	}
	from, to := args[0], args[len(args)-1]
	results, err := compare.Read(filepath.Join(from, compare.JSONFile))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	plot.DefaultFont = sans
	drawn := 0
	for _, c := range charts {
		svg, err := c.draw(results)
		if err != nil {
			return fmt.Errorf("draw %s: %w", c.file, err)
		}
		if svg == nil {
			continue // nothing of it was measured
		}
		path := filepath.Join(to, c.file)
		if err := os.WriteFile(path, svg, 0o644); err != nil {
			return err
		}
		fmt.Println(path)
		drawn++
	}
	if drawn == 0 {
		return fmt.Errorf("%s holds nothing that a chart is made of", from)
	}
	return nil
}
