package report

import (
	"bytes"
	"image/color"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/shoal-dev/shoal/benchmarks/result"
)

// figure is a plot before it is drawn. Without lines it is none.
type figure struct {
	file, title, caption string
	x, y                 string  // of the axes
	whole                bool    // x are whole numbers
	until                float64 // where x ends; 0: with the data
	ticks                []plot.Tick
	lines                []line
}

// line of a figure.
type line struct {
	name   string
	style  style
	points plotter.XYs
	marks  bool
}

// style tells modes apart, also without colours.
type style struct {
	color  color.RGBA
	dashes []vg.Length
	mark   draw.GlyphDrawer
	width  vg.Length
}

var (
	grey  = color.RGBA{R: 0x77, G: 0x77, B: 0x77, A: 0xff}
	faint = color.RGBA{R: 0xe2, G: 0xe2, B: 0xe2, A: 0xff}

	// yardstick is the style of what was not measured.
	yardstick = style{color: grey, dashes: []vg.Length{2, 3}, width: 1}

	// Colours are Okabe's and Ito's (2008), which the colour-blind can tell
	// apart too; without their yellow, which is pale on white.
	shoalStyle   = style{color: color.RGBA{R: 0x00, G: 0x72, B: 0xb2, A: 0xff}, mark: draw.CircleGlyph{}, width: 2}
	perfectStyle = style{color: color.RGBA{A: 0xff}, dashes: []vg.Length{6, 2}, mark: draw.RingGlyph{}, width: 1.5}
	otherStyles  = []style{
		{color: color.RGBA{R: 0xe6, G: 0x9f, B: 0x00, A: 0xff}, mark: draw.SquareGlyph{}, width: 1.5},
		{color: color.RGBA{R: 0x00, G: 0x9e, B: 0x73, A: 0xff}, mark: draw.PyramidGlyph{}, width: 1.5},
		{color: color.RGBA{R: 0xd5, G: 0x5e, B: 0x00, A: 0xff}, mark: draw.CrossGlyph{}, width: 1.5},
		{color: color.RGBA{R: 0xcc, G: 0x79, B: 0xa7, A: 0xff}, mark: draw.BoxGlyph{}, width: 1.5},
		{color: color.RGBA{R: 0x56, G: 0xb4, B: 0xe9, A: 0xff}, mark: draw.TriangleGlyph{}, width: 1.5},
	}
)

// stylesOf modes. More modes than colours are told apart by dashes.
func stylesOf(modes []string) map[string]style {
	styles := map[string]style{}
	others := 0
	for _, m := range slices.Sorted(slices.Values(modes)) {
		switch m {
		case result.Shoal:
			styles[m] = shoalStyle
		case result.Perfect:
			styles[m] = perfectStyle
		default:
			s := otherStyles[others%len(otherStyles)]
			if again := others / len(otherStyles); again > 0 {
				s.dashes = []vg.Length{vg.Length(3 * again), 2}
			}
			styles[m] = s
			others++
		}
	}
	return styles
}

// add a line, if it has points.
func (f *figure) add(l line) {
	if len(l.points) > 0 {
		f.lines = append(f.lines, l)
	}
}

// level adds a horizontal yardstick.
func (f *figure) level(name string, y float64) {
	least, greatest := span(f.lines, func(p plotter.XY) float64 { return p.X })
	if least == greatest {
		least, greatest = least-0.5, greatest+0.5
	}
	f.lines = append(f.lines, line{name: name, style: yardstick, points: plotter.XYs{{X: least, Y: y}, {X: greatest, Y: y}}})
}

const (
	width  = 7.5 * vg.Inch
	height = 4 * vg.Inch
)

// svg is the figure as a file.
func (f figure) svg() ([]byte, error) {
	c := vgsvg.New(width, height)
	if err := f.draw(draw.New(c)); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return nil, err
	}
	// Few computers have the font that it was laid out with; Arial's letters
	// are as wide.
	const font = "font-family:Liberation Sans"
	return bytes.ReplaceAll(b.Bytes(), []byte(font), []byte(font+",Arial,Helvetica,sans-serif")), nil
}

// draw on a page, the legend to the right of the data.
func (f figure) draw(page draw.Canvas) error {
	p := plot.New()
	p.Title.Text = f.title
	p.Title.Padding = 8
	p.X.Label.Text, p.Y.Label.Text = f.x, f.y
	legend := plot.NewLegend()
	legend.Top, legend.Left = true, true
	legend.Padding = 3
	legend.ThumbnailWidth = 24
	for _, s := range []*draw.TextStyle{
		&p.Title.TextStyle, &p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label, &legend.TextStyle,
	} {
		s.Font.Variant = "Sans"
		s.Font.Size = 10
	}
	p.Title.TextStyle.Font.Size = 11
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = faint, faint
	p.Add(grid)
	for _, l := range f.lines {
		if err := l.draw(p, &legend); err != nil {
			return err
		}
	}
	f.axes(p)

	page.SetColor(color.White)
	page.Fill(page.Path())
	page = draw.Crop(page, 6, -6, 6, -6)
	aside := legend.Rectangle(page).Size().X + 14
	p.Draw(draw.Crop(page, 0, -aside, 0, 0))
	legend.Draw(draw.Crop(page, page.Size().X-aside+10, 0, 0, -24))
	return nil
}

func (l line) draw(p *plot.Plot, legend *plot.Legend) error {
	path, err := plotter.NewLine(l.points)
	if err != nil {
		return err
	}
	path.Color, path.Dashes, path.Width = l.style.color, l.style.dashes, l.style.width
	p.Add(path)
	if !l.marks {
		legend.Add(l.name, path)
		return nil
	}
	marks, err := plotter.NewScatter(l.points)
	if err != nil {
		return err
	}
	marks.GlyphStyle = draw.GlyphStyle{Color: l.style.color, Radius: 3, Shape: l.style.mark}
	p.Add(marks)
	legend.Add(l.name, path, marks)
	return nil
}

// axes sets what the axes span, and their ticks.
func (f figure) axes(p *plot.Plot) {
	const (
		// A multiple of which a linear axis would press all but the greatest
		// together.
		far = 5
		// A multiple within which an axis from 0 would press all together.
		near = 2
		// A share of the greatest below which a difference should not look large.
		little = 0.1
	)
	least, greatest := span(f.lines, func(p plotter.XY) float64 { return p.Y })
	switch {
	case least > 0 && greatest > far*least:
		p.Y.Label.Text += " (logarithmic)"
		p.Y.Scale = plot.LogScale{}
		p.Y.Min, p.Y.Max = least/1.1, greatest*1.1
		p.Y.Tick.Marker = plot.TickerFunc(logTicks)
	case least > 0 && greatest < near*least:
		p.Y.Label.Text += " (not from 0)"
		room := max(greatest-least, little*greatest)
		p.Y.Min, p.Y.Max = least-0.1*room, least+1.1*room
	default:
		p.Y.Min, p.Y.Max = 0, 1.05*greatest
	}
	if f.until > 0 {
		p.X.Max = f.until
	}
	switch {
	case f.ticks != nil:
		p.X.Tick.Marker = plot.ConstantTicks(f.ticks)
	case f.whole:
		p.X.Tick.Marker = plot.TickerFunc(wholeTicks)
	}
}

// logTicks are 1, 2, 5, 10, 20, 50... between least and greatest.
func logTicks(least, greatest float64) []plot.Tick {
	var ticks []plot.Tick
	for e := math.Floor(math.Log10(least)); e <= math.Log10(greatest); e++ {
		for _, m := range []float64{1, 2, 5} {
			if v := m * math.Pow(10, e); v >= least && v <= greatest {
				ticks = append(ticks, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'f', max(0, -int(e)), 64)})
			}
		}
	}
	return ticks
}

// wholeTicks are at most twelve whole numbers.
func wholeTicks(least, greatest float64) []plot.Tick {
	step := 1.0
	for i := 0; (greatest-least)/step > 11; i++ {
		step *= []float64{2, 2.5, 2}[i%3] // 1, 2, 5, 10
	}
	var ticks []plot.Tick
	for v := math.Ceil(least/step) * step; v <= greatest; v += step {
		ticks = append(ticks, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'f', 0, 64)})
	}
	return ticks
}
