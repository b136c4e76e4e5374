package main

import (
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"muslin/bench/compare"
)

// bars draws one figure of every system: a bar to the median, a whisker from the lowest to the highest round,
// and the median's number behind it. gonum's own bars know no whiskers that stand in a group.
type bars struct {
	groups [][]compare.Summary // by system, then by figure
	figure int                 // which of the figures
	of     int
	color  color.Color
}

// groupSpan is how much of the distance between two systems their bars take.
const groupSpan = 0.76

// span is where the bar of a system lies on the Y axis.
func (b *bars) span(system int) (low, high float64) {
	height := groupSpan / float64(b.of)
	high = float64(system) + groupSpan/2 - float64(b.figure)*height
	return high - height, high
}

func (b *bars) Plot(c draw.Canvas, p *plot.Plot) {
	toX, toY := p.Transforms(&c)
	whisker := draw.LineStyle{Color: color.Black, Width: vg.Points(0.7)}
	text := p.X.Tick.Label
	text.Font.Size = vg.Points(7)
	text.XAlign, text.YAlign = draw.XLeft, draw.YCenter
	for i, group := range b.groups {
		s := group[b.figure]
		if s.Rounds == 0 {
			continue
		}
		low, high := b.span(i)
		bottom, top, middle := toY(low), toY(high), toY((low+high)/2)
		c.FillPolygon(b.color, []vg.Point{
			{X: toX(0), Y: bottom}, {X: toX(s.Median), Y: bottom}, {X: toX(s.Median), Y: top}, {X: toX(0), Y: top},
		})
		end := toX(s.High)
		if s.Rounds > 1 {
			cap := (top - bottom) / 4
			c.StrokeLine2(whisker, toX(s.Low), middle, end, middle)
			c.StrokeLine2(whisker, toX(s.Low), middle-cap, toX(s.Low), middle+cap)
			c.StrokeLine2(whisker, end, middle-cap, end, middle+cap)
		}
		c.FillText(text, vg.Point{X: end + vg.Points(3), Y: middle}, compare.Number(s.Median))
	}
}

// DataRange leaves room for the numbers.
func (b *bars) DataRange() (xmin, xmax, ymin, ymax float64) {
	for _, group := range b.groups {
		xmax = max(xmax, group[b.figure].High)
	}
	return 0, xmax * 1.1, -0.5, float64(len(b.groups)) - 0.5
}

// Thumbnail is the colour in the legend.
func (b *bars) Thumbnail(c *draw.Canvas) {
	c.FillPolygon(b.color, []vg.Point{
		{X: c.Min.X, Y: c.Min.Y}, {X: c.Max.X, Y: c.Min.Y}, {X: c.Max.X, Y: c.Max.Y}, {X: c.Min.X, Y: c.Max.Y},
	})
}
