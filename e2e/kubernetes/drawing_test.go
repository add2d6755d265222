//go:build e2e

package kubernetes

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"time"

	"github.com/prometheus/common/model"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	canvas "gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	// Grafana's grid has 24 columns; its rows are lower than these are wide.
	column    = vg.Length(38)
	rowHeight = vg.Length(24)
	small     = vg.Length(8)
)

var (
	ink   = color.RGBA{R: 0x22, G: 0x22, B: 0x22, A: 0xff}
	grey  = color.RGBA{R: 0x77, G: 0x77, B: 0x77, A: 0xff}
	faint = color.RGBA{R: 0xe2, G: 0xe2, B: 0xe2, A: 0xff}
	// Okabe's and Ito's colours (2008), which the colour-blind can tell apart too.
	colours = []color.RGBA{
		{R: 0x00, G: 0x72, B: 0xb2, A: 0xff},
		{R: 0xe6, G: 0x9f, B: 0x00, A: 0xff},
		{R: 0x00, G: 0x9e, B: 0x73, A: 0xff},
		{R: 0xd5, G: 0x5e, B: 0x00, A: 0xff},
		{R: 0xcc, G: 0x79, B: 0xa7, A: 0xff},
		{R: 0x56, G: 0xb4, B: 0xe9, A: 0xff},
	}
)

// draw is the dashboard as a picture: panels where Grafana has them, in a style
// of our own.
func draw(d dashboard, from, to time.Time) ([]byte, error) {
	rows := 0
	for _, p := range d.Panels {
		rows = max(rows, p.GridPos.Y+p.GridPos.H)
	}
	c := vgsvg.New(24*column, vg.Length(rows)*rowHeight)
	page := canvas.New(c)
	page.SetColor(color.White)
	page.Fill(page.Path())
	for _, p := range d.Panels {
		g := p.GridPos
		at := canvas.Crop(page,
			vg.Length(g.X)*column, -vg.Length(24-g.X-g.W)*column,
			vg.Length(rows-g.Y-g.H)*rowHeight, -vg.Length(g.Y)*rowHeight)
		if err := p.draw(canvas.Crop(at, 4, -4, 4, -4), from, to); err != nil {
			return nil, fmt.Errorf("draw %s: %w", p.Title, err)
		}
	}
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return nil, err
	}
	// Few computers have the font that it was laid out with; Arial's letters are
	// as wide.
	const family = "font-family:Liberation Sans"
	return bytes.ReplaceAll(b.Bytes(), []byte(family), []byte(family+",Arial,Helvetica,sans-serif")), nil
}

// written is a style of text.
func written(size font.Length, c color.Color, x text.XAlignment, y text.YAlignment) text.Style {
	f := font.From(plot.DefaultFont, size)
	f.Variant = "Sans"
	return text.Style{Color: c, Font: f, XAlign: x, YAlign: y, Handler: plot.DefaultTextHandler}
}

func (p *panel) draw(c canvas.Canvas, from, to time.Time) error {
	if p.Type == "row" {
		c.FillText(written(12, ink, text.XLeft, text.YCenter), vg.Point{X: c.Min.X, Y: c.Center().Y}, p.Title)
		return nil
	}
	c.SetColor(faint)
	c.SetLineWidth(0.8)
	c.Stroke(c.Path())
	c = canvas.Crop(c, 6, -8, 4, -4)
	c.FillText(written(9.5, ink, text.XLeft, text.YTop), vg.Point{X: c.Min.X, Y: c.Max.Y}, p.Title)
	c = canvas.Crop(c, 0, 0, 0, -16)
	switch {
	case len(p.series) == 0:
		c.FillText(written(small, grey, text.XCenter, text.YCenter), c.Center(), "nothing")
		return nil
	case p.Type == "stat":
		p.drawStat(c)
		return nil
	case p.Type == "status-history":
		p.drawHeat(c, from, to)
		return nil
	default:
		return p.drawLines(p.drawLegend(c), from, to)
	}
}

// drawStat writes the values large, beside each other.
func (p *panel) drawStat(c canvas.Canvas) {
	width := c.Size().X / vg.Length(len(p.series))
	for i, l := range p.series {
		middle := c.Min.X + width*(vg.Length(i)+0.5)
		c.FillText(written(17, colours[0], text.XCenter, text.YCenter), vg.Point{X: middle, Y: c.Center().Y}, p.humanize(l.last()))
		c.FillText(written(small, grey, text.XCenter, text.YBottom), vg.Point{X: middle, Y: c.Min.Y + 2}, l.legend)
	}
}

// drawHeat draws a row for each series and a column for each of the times that the
// panel has room for; the darker, the more.
func (p *panel) drawHeat(c canvas.Canvas, from, to time.Time) {
	name := written(small, ink, text.XRight, text.YCenter)
	names, hottest := vg.Length(0), 0.0
	heat := make([][]float64, len(p.series)) // of each column
	columns := max(p.MaxDataPoints, 1)
	for i, l := range p.series {
		names = max(names, name.Width(l.legend))
		heat[i] = make([]float64, columns)
		for _, x := range l.points {
			at := float64(x.Timestamp.Time().Sub(from)) / float64(to.Sub(from))
			column := min(max(int(at*float64(columns)), 0), columns-1)
			heat[i][column] = max(heat[i][column], float64(x.Value))
			hottest = max(hottest, float64(x.Value))
		}
	}
	c = canvas.Crop(c, names+12, 0, 0, -2)
	caption := func(align text.XAlignment, x vg.Length, words string) {
		c.FillText(written(small, grey, align, text.YBottom), vg.Point{X: x, Y: c.Min.Y}, words)
	}
	caption(text.XLeft, c.Min.X, "0 min")
	caption(text.XCenter, c.Center().X, "darkest: "+p.humanize(hottest))
	caption(text.XRight, c.Max.X, digits(to.Sub(from).Minutes())+" min")
	c = canvas.Crop(c, 0, 0, 14, 0)
	size := vg.Point{X: c.Size().X / vg.Length(columns), Y: c.Size().Y / vg.Length(len(p.series))}
	for i, row := range heat {
		y := c.Max.Y - size.Y*vg.Length(i+1)
		c.FillText(name, vg.Point{X: c.Min.X - 6, Y: y + size.Y/2}, p.series[i].legend)
		for k, v := range row {
			x := c.Min.X + size.X*vg.Length(k)
			c.FillPolygon(warmth(v/max(hottest, 1)), []vg.Point{
				{X: x, Y: y + 1}, {X: x + size.X - 1, Y: y + 1}, {X: x + size.X - 1, Y: y + size.Y - 1}, {X: x, Y: y + size.Y - 1},
			})
		}
	}
}

// warmth is a colour from nearly white over yellow to dark red, for 0 to 1; it gets
// darker all the way, for those who do not see the difference in hue.
func warmth(v float64) color.Color {
	steps := []color.RGBA{
		{R: 0xf5, G: 0xf5, B: 0xf0, A: 0xff}, {R: 0xfe, G: 0xd9, B: 0x76, A: 0xff},
		{R: 0xf0, G: 0x6c, B: 0x2b, A: 0xff}, {R: 0x80, G: 0x00, B: 0x26, A: 0xff},
	}
	at := min(max(v, 0), 1) * float64(len(steps)-1)
	i := min(int(at), len(steps)-2)
	mix := func(a, b uint8) uint8 { return uint8(float64(a) + (float64(b)-float64(a))*(at-float64(i))) }
	a, b := steps[i], steps[i+1]
	return color.RGBA{R: mix(a.R, b.R), G: mix(a.G, b.G), B: mix(a.B, b.B), A: 0xff}
}

// drawLegend writes the names of the lines in rows at the bottom, and returns what
// is left.
func (p *panel) drawLegend(c canvas.Canvas) canvas.Canvas {
	const dash, space = 8, 10
	style := written(small, ink, text.XLeft, text.YCenter)
	rows := [][]int{nil}
	var x vg.Length
	for i, l := range p.series {
		width := dash + 3 + style.Width(l.legend) + space
		if x += width; x > c.Size().X {
			rows, x = append(rows, nil), width
		}
		rows[len(rows)-1] = append(rows[len(rows)-1], i)
	}
	at := c.Min
	for i := len(rows) - 1; i >= 0; i-- {
		at = vg.Point{X: c.Min.X, Y: at.Y + 5}
		for _, series := range rows[i] {
			name := p.series[series].legend
			if name == "" {
				continue
			}
			c.StrokeLine2(canvas.LineStyle{Color: colours[series%len(colours)], Width: 2}, at.X, at.Y, at.X+dash, at.Y)
			c.FillText(style, vg.Point{X: at.X + dash + 3, Y: at.Y}, name)
			at.X += dash + 3 + style.Width(name) + space
		}
		at.Y += 5
	}
	return canvas.Crop(c, 0, 0, at.Y-c.Min.Y+3, 0)
}

func (p *panel) drawLines(c canvas.Canvas, from, to time.Time) error {
	graph := plot.New()
	for _, axis := range []*plot.Axis{&graph.X, &graph.Y} {
		axis.Tick.Label = written(small, grey, axis.Tick.Label.XAlign, axis.Tick.Label.YAlign)
		axis.Tick.Length, axis.Padding = 0, 2
		axis.LineStyle.Color = faint
	}
	graph.X.Min, graph.X.Max = 0, to.Sub(from).Minutes()
	graph.X.Tick.Marker = plot.ConstantTicks(ticks(graph.X.Max, 1, func(v float64) string { return digits(v) + " min" }))
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = faint, faint
	graph.Add(grid)
	stacked := p.FieldConfig.Defaults.Custom.Stacking.Mode == "normal"
	below := map[int64]float64{} // what is stacked so far, by time
	var layers []plot.Plotter
	var least, greatest float64
	for i, l := range p.series {
		shade := colours[i%len(colours)]
		for _, run := range runs(l.points) {
			var points plotter.XYs
			for _, x := range run {
				v := float64(x.Value)
				if stacked {
					below[int64(x.Timestamp)] += v
					v = below[int64(x.Timestamp)]
				}
				points = append(points, plotter.XY{X: x.Timestamp.Time().Sub(from).Minutes(), Y: v})
				least, greatest = min(least, v), max(greatest, v)
			}
			if len(points) == 1 { // or nobody would see it
				points = append(points, plotter.XY{X: points[0].X + scrapeEvery.Minutes(), Y: points[0].Y})
			}
			line, err := plotter.NewLine(points)
			if err != nil {
				return err
			}
			line.Color, line.Width = shade, 1.2
			if stacked {
				line.FillColor = pale(shade)
			}
			layers = append(layers, line)
		}
	}
	// The lowest of a stack is drawn over the others.
	for i := range layers {
		graph.Add(layers[len(layers)-1-i])
	}
	if least == greatest {
		greatest = least + 1
	}
	graph.Y.Min, graph.Y.Max = least*1.05, greatest*1.05
	scale, _ := p.unit(max(greatest, -least))
	graph.Y.Tick.Marker = plot.ConstantTicks(append(ticks(greatest, scale, p.humanize), ticks(least, scale, p.humanize)[1:]...))
	graph.Draw(c)
	return nil
}

func pale(c color.RGBA) color.RGBA {
	mix := func(v uint8) uint8 { return uint8((int(v) + 2*255) / 3) }
	return color.RGBA{R: mix(c.R), G: mix(c.G), B: mix(c.B), A: 0xff}
}

// runs are the parts of a series between its gaps.
func runs(points []model.SamplePair) [][]model.SamplePair {
	var all [][]model.SamplePair
	began := 0
	for i := range points {
		if i+1 == len(points) || points[i+1].Timestamp.Sub(points[i].Timestamp) > scrapeEvery {
			all = append(all, points[began:i+1])
			began = i + 1
		}
	}
	return all
}

// ticks are 0 and a few round multiples of scale up to end, which may be negative.
func ticks(end, scale float64, label func(float64) string) []plot.Tick {
	const most = 4
	all := []plot.Tick{{Label: label(0)}}
	if end == 0 {
		return all
	}
	step := scale
	for math.Abs(end)/step < most/2 {
		step /= 10
	}
	for i := 0; math.Abs(end)/step > most; i++ {
		step *= []float64{2, 2.5, 2}[i%3] // 1, 2, 5, 10
	}
	for i := 1.0; i*step <= math.Abs(end); i++ {
		v := math.Copysign(i*step, end)
		all = append(all, plot.Tick{Value: v, Label: label(v)})
	}
	return all
}
