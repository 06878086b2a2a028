package files

import (
	"os"
	"path/filepath"
)

// Same reports whether two paths lead to one file or directory, through links.
func Same(a, b string) bool {
	one, errOne := os.Stat(a)
	two, errTwo := os.Stat(b)
	return errOne == nil && errTwo == nil && os.SameFile(one, two)
}

// SamePlace reports whether two whole paths lead to one place, through links. Neither needs to be there
// yet: the directories that they would be in are compared then.
func SamePlace(a, b string) bool {
	a, b = filepath.Clean(a), filepath.Clean(b)
	switch {
	case a == b || Same(a, b):
		return true
	case filepath.Base(a) != filepath.Base(b) || filepath.Dir(a) == a || filepath.Dir(b) == b:
		return false
	}
	return SamePlace(filepath.Dir(a), filepath.Dir(b))
}
