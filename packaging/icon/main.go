// Command icon draws the icon of the MCP bundle: a gate in a shield, 512 by 512, as PNG on
// its output.
package main

import (
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
)

const (
	size    = 512
	samples = 4 // by 4, of each pixel
)

func main() {
	if err := png.Encode(os.Stdout, draw()); err != nil {
		fmt.Fprintln(os.Stderr, "icon:", err)
		os.Exit(1)
	}
}

func draw() image.Image {
	img := image.NewNRGBA(image.Rect(0, 0, size, size))
	for y := range size {
		for x := range size {
			var r, g, b, a float64
			for i := range samples * samples {
				c := at((float64(x)+(float64(i%samples)+0.5)/samples)/size*2-1, (float64(y)+(float64(i/samples)+0.5)/samples)/size*2-1)
				r, g, b, a = r+float64(c.R)*float64(c.A), g+float64(c.G)*float64(c.A), b+float64(c.B)*float64(c.A), a+float64(c.A)
			}
			if a > 0 {
				img.SetNRGBA(x, y, color.NRGBA{uint8(math.Round(r / a)), uint8(math.Round(g / a)), uint8(math.Round(b / a)), uint8(math.Round(a / samples / samples))})
			}
		}
	}
	return img
}

var (
	night  = color.NRGBA{0x10, 0x2a, 0x2b, 0xff}
	silver = color.NRGBA{0xd8, 0xe2, 0xdc, 0xff}
	leaf   = color.NRGBA{0x2f, 0x7d, 0x5d, 0xff}
	gold   = color.NRGBA{0xf0, 0xc0, 0x60, 0xff}
)

// at is the colour of a point; both coordinates run from -1 to 1, y downwards.
func at(x, y float64) color.NRGBA {
	switch d := shield(x, y); {
	case d > 0.86:
		return color.NRGBA{}
	case d > 0.78:
		return silver
	}
	// The gate: an arch with a door that is half open.
	const top, foot, half = -0.18, 0.42, 0.3
	inside := math.Abs(x) < half && y > top && y < foot || math.Hypot(x, y-top) < half
	frame := math.Abs(x) < half+0.08 && y > top && y < foot || y <= top && math.Hypot(x, y-top) < half+0.08
	switch {
	case inside && (math.Abs(x) < 0.025 || math.Hypot(x-0.1, y-0.12) < 0.035):
		return gold
	case inside:
		return night
	case frame:
		return silver
	}
	return leaf
}

// shield is below 1 inside a shield, and grows outwards.
func shield(x, y float64) float64 {
	if y < 0 {
		return math.Max(math.Abs(x)/0.92, -y/0.95) + 0.02
	}
	return math.Max(math.Hypot(x/0.92, y/1.12), math.Abs(x)/0.92) + 0.02
}
