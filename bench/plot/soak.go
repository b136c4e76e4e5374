package main

import (
	"bytes"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"muslin/bench/soak"
)

// soakPanels are drawn one below the other, over the same time.
var soakPanels = []struct {
	title string
	value func(soak.Sample) float64
}{
	{"Resident memory, MB", func(s soak.Sample) float64 { return float64(s.Resident) / 1e6 }},
	{"Goroutines", func(s soak.Sample) float64 { return float64(s.Goroutines) }},
	{"File descriptors", func(s soak.Sample) float64 { return float64(s.Descriptors) }},
	{"Packets dropped since the start", func(s soak.Sample) float64 { return float64(s.Dropped()) }},
}

const panelHeight = 96

// drawSoak draws what the daemons took over time, a line for each.
func drawSoak(r *soak.Results) ([]byte, error) {
	height := vg.Length(len(soakPanels)*panelHeight + frame)
	canvas := vgsvg.New(width, height)
	c := draw.New(canvas)
	c.FillPolygon(color.White, []vg.Point{c.Min, {X: c.Max.X, Y: c.Min.Y}, c.Max, {X: c.Min.X, Y: c.Max.Y}})
	var plots [][]*plot.Plot
	for i, panel := range soakPanels {
		p, err := soakPanel(r, panel.value)
		if err != nil {
			return nil, err
		}
		p.Title.Text = panel.title
		p.Title.TextStyle.Font.Size = vg.Points(10)
		if i == len(soakPanels)-1 {
			p.X.Label.Text = "minutes"
		}
		plots = append(plots, []*plot.Plot{p})
	}
	tiles := draw.Tiles{Rows: len(plots), Cols: 1, PadTop: margin, PadBottom: margin, PadLeft: margin, PadRight: 2 * margin, PadY: margin}
	for i, row := range plot.Align(plots, tiles, c) {
		plots[i][0].Draw(row[0])
	}
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return nil, err
	}
	return bytes.ReplaceAll(svg.Bytes(), []byte("font-family:Liberation Sans"), []byte("font-family:"+families)), nil
}

// soakPanel is one value of all daemons. The axis begins at 0, so that what is flat looks flat.
func soakPanel(r *soak.Results, value func(soak.Sample) float64) (*plot.Plot, error) {
	p := plot.New()
	p.Add(plotter.NewGrid())
	p.Legend.Top = false
	p.Legend.TextStyle.Font.Size = vg.Points(8)
	for i, d := range r.Daemons {
		var points plotter.XYs
		for _, s := range d.Samples {
			points = append(points, plotter.XY{X: s.At / 60, Y: value(s)})
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return nil, err
		}
		line.Color = palette[i%len(palette)]
		line.Width = vg.Points(1)
		p.Add(line)
		p.Legend.Add(d.Name, line)
	}
	p.X.Min, p.X.Max = 0, r.Length/60
	p.Y.Min = 0
	p.Y.Max = max(p.Y.Max*1.15, 1)
	return p, nil
}
