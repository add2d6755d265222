package main

import (
	"bytes"
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// figure is one plot by the number of nodes, with a line for each scenario.
type figure struct {
	file, title, y string
	value          func(result) float64
	level          float64 // a yardstick; 0: none
}

var figures = []figure{
	{"time", "time of the last node by number of nodes", "last node ÷ bound", func(r result) float64 { return r.Last }, 1},
	{"copies", "copies that left the registry by number of nodes", "copies", func(r result) float64 { return r.Copies }, 1},
	{"messages", "messages to and from the tracker by number of nodes", "most in one second", func(r result) float64 { return r.UpPeak + r.DownPeak }, 0},
	{"connections", "connections by number of nodes", "most of one node", func(r result) float64 { return float64(r.ConnsMax) }, 0},
}

// Okabe's and Ito's colours (2008), which the colour-blind can tell apart too.
var colours = []color.RGBA{
	{R: 0x00, G: 0x72, B: 0xb2, A: 0xff},
	{R: 0xe6, G: 0x9f, B: 0x00, A: 0xff},
	{R: 0x00, G: 0x9e, B: 0x73, A: 0xff},
	{R: 0xd5, G: 0x5e, B: 0x00, A: 0xff},
	{R: 0xcc, G: 0x79, B: 0xa7, A: 0xff},
}

var marks = []draw.GlyphDrawer{draw.CircleGlyph{}, draw.SquareGlyph{}, draw.PyramidGlyph{}, draw.CrossGlyph{}, draw.BoxGlyph{}}

// drawAll writes the plots of results into a directory.
func drawAll(dir string, all []result) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	for _, f := range figures {
		b, err := f.svg(all)
		if err != nil {
			return fmt.Errorf("plot %s: %w", f.file, err)
		}
		if err := os.WriteFile(filepath.Join(dir, "sim-"+f.file+".svg"), b, 0o644); err != nil {
			return fmt.Errorf("write plot: %w", err)
		}
	}
	return nil
}

func (f figure) svg(all []result) ([]byte, error) {
	p := plot.New()
	p.Title.Text = "simulation: " + f.title
	p.X.Label.Text, p.Y.Label.Text = "nodes", f.y
	p.X.Scale = plot.LogScale{}
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	var ticks []plot.Tick
	var scenarios []string
	for _, r := range all {
		if !slices.Contains(scenarios, r.Scenario) {
			scenarios = append(scenarios, r.Scenario)
		}
		t := plot.Tick{Value: float64(r.Nodes), Label: strconv.Itoa(r.Nodes)}
		if !slices.Contains(ticks, t) {
			ticks = append(ticks, t)
		}
	}
	p.X.Tick.Marker = plot.ConstantTicks(ticks)
	for k, s := range scenarios {
		points := f.points(all, s)
		l, m, err := plotter.NewLinePoints(points)
		if err != nil {
			return nil, err
		}
		l.Color, m.Color = colours[k%len(colours)], colours[k%len(colours)]
		l.Width = vg.Points(1.5)
		m.Shape = marks[k%len(marks)]
		p.Add(l, m)
		p.Legend.Add(s, l, m)
	}
	if f.level > 0 {
		y := plotter.NewFunction(func(float64) float64 { return f.level })
		y.Dashes = []vg.Length{2, 3}
		p.Add(y)
		p.Y.Min = min(p.Y.Min, f.level)
	} else {
		p.Y.Min = 0
	}
	if p.Y.Max-p.Y.Min < 0.01 { // or the scale would magnify nothing
		p.Y.Max = p.Y.Min + 0.1
	}
	if len(ticks) == 1 { // a logarithmic axis needs some extent
		p.X.Min, p.X.Max = p.X.Min/2, p.X.Max*2
	}
	c := vgsvg.New(7.5*vg.Inch, 4*vg.Inch)
	p.Draw(draw.New(c))
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// points are a scenario's, the mean of the seeds.
func (f figure) points(all []result, scenario string) plotter.XYs {
	sum, count := map[int]float64{}, map[int]float64{}
	for _, r := range all {
		if r.Scenario == scenario {
			sum[r.Nodes] += f.value(r)
			count[r.Nodes]++
		}
	}
	var points plotter.XYs
	for n, s := range sum {
		points = append(points, plotter.XY{X: float64(n), Y: s / count[n]})
	}
	slices.SortFunc(points, func(a, b plotter.XY) int { return int(a.X - b.X) })
	return points
}
