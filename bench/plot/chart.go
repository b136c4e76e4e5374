package main

import (
	"bytes"
	"image/color"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"muslin/bench/compare"
)

// chart is one picture: a group of bars for each system, a bar for each figure.
type chart struct {
	file    string
	title   string
	axis    string
	figures []string
	rows    func(compare.Entry) bool
	against string // the system whose first figure is drawn as a line
}

// The ladder's rungs have a chart of their own.
func noRung(e compare.Entry) bool { return !e.Rung }

const full = "muslin-vxlan"

func ladder(e compare.Entry) bool { return e.Name == full || strings.HasPrefix(e.Name, full+":") }

var charts = []chart{
	{"tcp.svg", "TCP throughput", "Gb/s, more is better", []string{"tcp-1", "tcp-4"}, noRung, compare.Baseline},
	{"udp.svg", "UDP at full rate", "thousand packets a second received, more is better", []string{"udp-64", "udp-1400"}, noRung, compare.Baseline},
	{"latency.svg", "Latency of a TCP ping-pong, one way", "µs, less is better", []string{"tcp-latency-p50", "tcp-latency-p99"}, noRung, compare.Baseline},
	{"cpu.svg", "Processor time for TCP, 1 stream", "seconds a gigabyte, less is better", []string{"cpu-machine", "cpu-daemons"}, noRung, compare.Baseline},
	{"ladder.svg", "TCP, 1 stream, with one feature left out", "Gb/s, more is better", []string{"tcp-1"}, ladder, full},
	{"ladder-udp.svg", "UDP 64 B at full rate, with one feature left out", "thousand packets a second received, more is better", []string{"udp-64"}, ladder, full},
}

// The colours of the figures, told apart by those who see no red or green too.
var palette = []color.Color{
	color.NRGBA{0x1f, 0x6f, 0xb4, 0xff},
	color.NRGBA{0xf2, 0xa1, 0x3a, 0xff},
}

// Lengths, in points as gonum counts.
const (
	width     = 510 // fits a page of documentation
	barHeight = 9   // and as much again between two groups
	frame     = 62  // title and axis
	legendRow = 15
	margin    = 6
)

// families are tried by a browser, which need not have the font that the text was measured with; Arial's letters
// are as wide.
const families = "'Liberation Sans',Arial,Helvetica,sans-serif"

var sans = font.Font{Typeface: "Liberation", Variant: "Sans"}

// draw returns nil if the figures were not measured of at least two systems.
func (c chart) draw(r *compare.Results) ([]byte, error) {
	pic, err := c.layOut(r)
	if pic == nil || err != nil {
		return nil, err
	}
	canvas := vgsvg.New(width, pic.height)
	pic.drawOn(draw.New(canvas))
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return nil, err
	}
	return bytes.ReplaceAll(svg.Bytes(), []byte("font-family:Liberation Sans"), []byte("font-family:"+families)), nil
}

// picture is a chart with what was measured, and its legend, which stands below it: inside it would cover bars.
type picture struct {
	plot   *plot.Plot
	legend plot.Legend
	strip  vg.Length // the legend's height
	height vg.Length // in all
}

func (p *picture) drawOn(c draw.Canvas) {
	c.FillPolygon(color.White, []vg.Point{c.Min, {X: c.Max.X, Y: c.Min.Y}, c.Max, {X: c.Min.X, Y: c.Max.Y}})
	p.plot.Draw(draw.Crop(c, margin, -margin, p.strip+margin, -margin))
	p.legend.Draw(draw.Crop(c, margin, -margin, margin, p.strip+margin-p.height))
}

func (c chart) layOut(r *compare.Results) (*picture, error) {
	figures := measured(r, c.figures)
	names, groups := c.groups(r, figures)
	if len(figures) == 0 || len(names) < 2 {
		return nil, nil
	}
	pic := &picture{plot: plot.New(), legend: plot.NewLegend()}
	p := pic.plot
	p.Title.Text = c.title
	p.Title.Padding = vg.Points(6)
	p.X.Label.Text = c.axis
	p.X.Min = 0
	p.Y.Padding = vg.Points(4)
	grid := plotter.NewGrid()
	grid.Horizontal.Width = 0
	p.Add(grid)
	reference, err := c.reference(r, figures[0], len(names))
	if err != nil {
		return nil, err
	}
	if reference != nil {
		p.Add(reference)
	}
	for i, f := range figures {
		b := &bars{groups: groups, figure: i, of: len(figures), color: palette[i%len(palette)]}
		p.Add(b)
		pic.legend.Add(f.Title, b)
	}
	if reference != nil {
		pic.legend.Add(c.against+", "+figures[0].Title, reference)
	}
	p.NominalY(names...)
	p.Y.Tick.Label.YAlign = draw.YCenter
	pic.legend.Left = true
	pic.legend.Padding = vg.Points(2)
	pic.legend.TextStyle.Font.Size = vg.Points(10)
	pic.strip = vg.Length((len(figures) + 1) * legendRow)
	pic.height = frame + pic.strip + vg.Length(len(names)*(len(figures)+1)*barHeight)
	return pic, nil
}

// reference is the line at the median of the system that the others are compared with, nil if it has none.
func (c chart) reference(r *compare.Results, f compare.Figure, systems int) (*plotter.Line, error) {
	s, ok := r.Summary(c.against, f.Name)
	if !ok {
		return nil, nil
	}
	line, err := plotter.NewLine(plotter.XYs{{X: s.Median, Y: -0.5}, {X: s.Median, Y: float64(systems) - 0.5}})
	if err != nil {
		return nil, err
	}
	line.Color = color.NRGBA{0x40, 0x40, 0x40, 0xff}
	line.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
	return line, nil
}

// measured are those of the figures that the run was to take.
func measured(r *compare.Results, names []string) []compare.Figure {
	var figures []compare.Figure
	for _, name := range names {
		for _, f := range r.Figures {
			if f.Name == name {
				figures = append(figures, f)
			}
		}
	}
	return figures
}

// groups are the names and the summaries of the systems that have any of the figures, the last system first:
// the axis goes upwards.
func (c chart) groups(r *compare.Results, figures []compare.Figure) (names []string, groups [][]compare.Summary) {
	for i := len(r.Systems) - 1; i >= 0; i-- {
		e := r.Systems[i]
		if !c.rows(e) {
			continue
		}
		group := make([]compare.Summary, len(figures)) // Rounds is 0 where there is none
		found := false
		for j, f := range figures {
			var ok bool
			group[j], ok = r.Summary(e.Name, f.Name)
			found = found || ok
		}
		if found {
			names, groups = append(names, c.label(e)), append(groups, group)
		}
	}
	return names, groups
}

// label is what stands beside the bars. A rung is known by what it leaves out.
func (c chart) label(e compare.Entry) string {
	if name, features, ok := strings.Cut(e.Name, ":"); ok && c.against == full && name == full {
		return features
	}
	return e.Name
}
