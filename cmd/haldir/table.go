package main

import (
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"github.com/mattn/go-isatty"
	"golang.org/x/term"
)

const (
	tableWidth = 80 // of what is not a terminal
	columnGap  = 2
)

// printTable writes rows in columns. On a line that has no room for them the
// widest columns are cut; --json has everything. The last column, which often
// is a sentence, is cut on a terminal only.
func (a *app) printTable(head []string, rows [][]string) error {
	rows = append([][]string{head}, rows...)
	last := len(head) - 1
	total, cut := a.width()
	widths := fit(rows, total, cut)
	w := tabwriter.NewWriter(a.out, 0, 4, columnGap, ' ', 0)
	for _, r := range rows {
		cells := make([]string, len(r))
		for i, c := range r {
			cells[i] = plain(c, widths[i])
		}
		if !cut {
			cells[last] = plain(r[last], 0)
		}
		if _, err := fmt.Fprintln(w, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}

// terminal is what in or out is if a person is at it, else nil.
func terminal(v any) *os.File {
	if f, ok := v.(*os.File); ok && isatty.IsTerminal(f.Fd()) {
		return f
	}
	return nil
}

func (a *app) width() (columns int, cut bool) {
	if f, ok := a.out.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			return w, true
		}
	}
	return tableWidth, false
}

// fit returns the widths of the columns, the widest made narrower until all of
// them have room in total. A last column that is not cut counts as its head.
func fit(rows [][]string, total int, cutLast bool) []int {
	widths := make([]int, len(rows[0]))
	sum := columnGap * (len(widths) - 1)
	for i := range widths {
		for _, r := range rows {
			if cutLast || i < len(widths)-1 {
				widths[i] = max(widths[i], utf8.RuneCountInString(r[i]))
			}
		}
		widths[i] = max(widths[i], utf8.RuneCountInString(rows[0][i]))
		sum += widths[i]
	}
	const least = 6
	for ; sum > total; sum-- {
		widest := 0
		for i := range widths {
			if widths[i] > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= least {
			break
		}
		widths[widest]--
	}
	return widths
}
