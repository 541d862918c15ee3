package bench

import (
	"bytes"
	"fmt"
	"html"
	"image/color"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Measures of a chart, in points.
const (
	chartHeight  = 280
	legendWidth  = 130
	groupWidth   = 26 // for each system in a group
	minPlotWidth = 380
	maxPlotWidth = 900
	titleHeight  = 30
	margin       = 6
	titleSize    = 13
	labelSize    = 10
)

// The colours of text and lines, of the ground and of the grid. Black is left out: SVG's default, and so not written.
var (
	ink   = color.RGBA{0x1f, 0x23, 0x28, 0xff}
	paper = color.RGBA{0xff, 0xff, 0xff, 0xff}
	grid  = color.RGBA{0xd0, 0xd7, 0xde, 0xff}
)

// darkStyle repaints these where a reader's system is dark. A viewer without style sheets shows the light colours and
// ground.
const darkStyle = `<style>@media (prefers-color-scheme: dark) {
[style*="fill:#FFFFFF"] { fill: #0d1117 !important }
[style*="fill:#1F2328"] { fill: #e6edf3 !important }
[style*="stroke:#1F2328"] { stroke: #e6edf3 !important }
[style*="stroke:#D0D7DE"] { stroke: #30363d !important }
}</style>
`

// systemColor keeps a system's colour the same in every chart. The colours can be told apart without seeing red and
// green apart (Okabe and Ito), and stand out from white and from black.
func systemColor(system string, index int) color.RGBA {
	known := map[string]color.RGBA{
		"veth":             {0x8c, 0x8c, 0x8c, 0xff},
		"kernel-vxlan":     {0x00, 0x72, 0xb2, 0xff},
		"warren-vxlan":     {0xd5, 0x5e, 0x00, 0xff},
		"warren-wireguard": {0xe6, 0x9f, 0x00, 0xff},
		"wireguard-go":     {0xcc, 0x79, 0xa7, 0xff},
		"nebula":           {0x00, 0x9e, 0x73, 0xff},
		"tinc":             {0x56, 0xb4, 0xe9, 0xff},
	}
	if c, ok := known[system]; ok {
		return c
	}
	others := []color.RGBA{{0xb8, 0xa9, 0x00, 0xff}, {0x7a, 0x52, 0xc7, 0xff}, {0xa0, 0x6a, 0x42, 0xff}}
	return others[index%len(others)]
}

// draw makes the SVG of a chart that has a figure.
func (c *chart) draw() ([]byte, error) {
	p := plot.New()
	style := func(s *text.Style, size vg.Length) {
		s.Font = font.From(font.Font{Typeface: "Liberation", Variant: "Sans"}, size)
		s.Color = ink
	}
	p.BackgroundColor = paper
	p.Y.Label.Text = c.axis
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		style(&a.Label.TextStyle, labelSize)
		style(&a.Tick.Label, labelSize)
		a.LineStyle.Color, a.Tick.LineStyle.Color = ink, ink
	}
	b := &groupedFigures{chart: c}
	p.Add(b)
	p.NominalX(c.groups...)
	style(&p.X.Tick.Label, labelSize)
	p.X.Min, p.X.Max = -0.5, float64(len(c.groups))-0.5
	p.Y.Min, p.Y.Max = c.verticalRange()
	if c.logarithmic {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.TickerFunc(steps)
	}
	width := vg.Length(min(maxPlotWidth, max(minPlotWidth, len(c.groups)*(len(c.series)+1)*groupWidth)))
	svg := vgsvg.New(width+legendWidth, chartHeight)
	whole := draw.New(svg)
	whole.FillPolygon(paper, rectangle(whole.Min, whole.Max))
	// Over the legend as well: a title is wider than a plot of little.
	var title text.Style
	style(&title, titleSize)
	title.Handler = p.Title.TextStyle.Handler
	whole.FillText(title, vg.Point{X: margin, Y: chartHeight - titleHeight*2/3}, c.title)
	p.Draw(draw.Crop(whole, margin, -legendWidth, margin, -titleHeight))
	legend := plot.NewLegend()
	style(&legend.TextStyle, labelSize)
	legend.Top, legend.Left, legend.Padding, legend.ThumbnailWidth = true, true, vg.Points(4), vg.Points(12)
	for i, s := range c.series {
		legend.Add(s.system, swatch{systemColor(s.system, i)})
	}
	legend.Draw(draw.Crop(whole, width+margin, 0, 0, -titleHeight))
	var out bytes.Buffer
	if _, err := svg.WriteTo(&out); err != nil {
		return nil, err
	}
	return dress(out.Bytes(), c.title)
}

// dress gives the SVG its title, for those who are read to, and its dark colours.
func dress(svg []byte, title string) ([]byte, error) {
	// The measures are of Liberation Sans; these are as wide.
	svg = bytes.ReplaceAll(svg, []byte("font-family:Liberation Sans;"),
		[]byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;"))
	const root = "<svg "
	start := bytes.Index(svg, []byte(root))
	if start < 0 {
		return nil, fmt.Errorf("the drawing has no element %q", root)
	}
	end := start + bytes.IndexByte(svg[start:], '>') + 1
	head := append(bytes.Clone(svg[:end]), "\n<title>"+html.EscapeString(title)+"</title>\n"+darkStyle...)
	return append(head, svg[end:]...), nil
}

// verticalRange leaves room above what is shown. A logarithmic axis begins and ends at a step, or it might have no
// number on it.
func (c *chart) verticalRange() (low, high float64) {
	low, high = math.Inf(1), 0
	for _, s := range c.series {
		for _, v := range s.values {
			low, high = min(low, v.Min), max(high, v.Max)
		}
	}
	if !c.logarithmic {
		if high <= 0 {
			high = 1
		}
		return 0, high * 1.05
	}
	const room = 1.1
	begin, end := low, high
	for _, t := range steps(low/10, high*10) {
		if t.Value <= low/room {
			begin = t.Value
		}
		if t.Value >= high*room {
			end = t.Value
			break
		}
	}
	return begin, end
}

// steps are the ticks of a logarithmic axis: 1, 2 and 5 of every power of ten.
func steps(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for e := math.Floor(math.Log10(low)); e <= math.Log10(high); e++ {
		for _, digit := range []float64{1, 2, 5} {
			// Of the digits and not of their product, which is a little off below 1.
			v, err := strconv.ParseFloat(fmt.Sprintf("%ge%g", digit, e), 64)
			if err == nil && v >= low*0.999 && v <= high*1.001 {
				ticks = append(ticks, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'f', -1, 64)})
			}
		}
	}
	return ticks
}

// groupedFigures draws the figures of a chart: bars from 0 or, on a logarithmic axis, dots; with each a line from its
// minimum to its maximum.
type groupedFigures struct{ chart *chart }

// Plot implements plot.Plotter.
func (b *groupedFigures) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	for _, tick := range p.Y.Tick.Marker.Ticks(p.Y.Min, p.Y.Max) {
		if at := y(tick.Value); !tick.IsMinor() && at <= c.Max.Y {
			c.StrokeLine2(draw.LineStyle{Color: grid, Width: vg.Points(0.5)}, c.Min.X, at, c.Max.X, at)
		}
	}
	if b.chart.logarithmic && p.Y.Min < 1 && p.Y.Max > 1 {
		c.StrokeLine2(draw.LineStyle{Color: ink, Width: vg.Points(0.8)}, c.Min.X, y(1), c.Max.X, y(1))
	}
	const filled = 0.8 // of a group's width
	width := filled / float64(len(b.chart.series))
	for i, s := range b.chart.series {
		fill := systemColor(s.system, i)
		for k, group := range b.chart.groups {
			v, ok := s.values[group]
			if !ok {
				continue
			}
			left := float64(k) - filled/2 + width*float64(i)
			from, to, middle := x(left+width*0.06), x(left+width*0.94), x(left+width/2)
			if !b.chart.logarithmic {
				c.FillPolygon(fill, rectangle(vg.Point{X: from, Y: y(0)}, vg.Point{X: to, Y: y(v.Median)}))
			}
			whisker(c, middle, y(v.Min), y(v.Max))
			if b.chart.logarithmic {
				c.DrawGlyph(draw.GlyphStyle{Color: fill, Radius: vg.Points(3), Shape: draw.CircleGlyph{}},
					vg.Point{X: middle, Y: y(v.Median)})
			}
		}
	}
}

func whisker(c draw.Canvas, x, low, high vg.Length) {
	const half = 3 // points
	line := draw.LineStyle{Color: ink, Width: vg.Points(0.8)}
	c.StrokeLine2(line, x, low, x, high)
	for _, y := range []vg.Length{low, high} {
		c.StrokeLine2(line, x-half, y, x+half, y)
	}
}

func rectangle(a, b vg.Point) []vg.Point {
	return []vg.Point{a, {X: b.X, Y: a.Y}, b, {X: a.X, Y: b.Y}}
}

// swatch is a system's colour in the legend.
type swatch struct{ color color.Color }

// Thumbnail implements plot.Thumbnailer.
func (s swatch) Thumbnail(c *draw.Canvas) { c.FillPolygon(s.color, rectangle(c.Min, c.Max)) }
