package peerconf

import (
	"fmt"
	"io"
	"strings"

	"github.com/skip2/go-qrcode"
)

// maxQR is what the largest QR code holds, in bytes (ISO/IEC 18004: version 40, level L).
const maxQR = 2953

// A Code is a QR code: rows of modules, the quiet zone of four around it included. True is a dark one.
type Code [][]bool

// QR is the configuration as a QR code, without comments.
func (f *File) QR() (Code, error) {
	text := f.text(false)
	const instead = "print it into a file, without --qr, and have the app import that"
	if len(text) > maxQR {
		return nil, fmt.Errorf("the configuration has %d bytes and a QR code holds %d: %s", len(text), maxQR, instead)
	}
	// The lowest level of correction makes the fewest modules: a screen has no stains.
	q, err := qrcode.New(text, qrcode.Low)
	if err != nil {
		return nil, fmt.Errorf("make the QR code: %w: %s", err, instead)
	}
	return q.Bitmap(), nil
}

// Columns is how wide the code is on a terminal, in characters.
func (c Code) Columns() int { return len(c) }

// The colours are set, as a terminal's own may be dark on light or light on dark, and cameras want the former.
const (
	whiteOnBlack = "\x1b[97;40m"
	plain        = "\x1b[0m"
)

// Write draws the code on a terminal, two rows of modules per line.
func (c Code) Write(w io.Writer) error {
	var b strings.Builder
	for y := 0; y < len(c); y += 2 {
		b.WriteString(whiteOnBlack)
		for x := range c[y] {
			upper, lower := c[y][x], y+1 == len(c) || c[y+1][x]
			b.WriteString([...]string{"█", "▀", "▄", " "}[2*index(upper)+index(lower)])
		}
		b.WriteString(plain + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}
