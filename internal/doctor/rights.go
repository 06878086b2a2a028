package doctor

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/haldir-mcp/haldir/internal/replace"
)

// right is what there must be of the mode of a file or directory, and what there must not be.
type right struct {
	chmod         string // as the program takes it
	must, mustNot fs.FileMode
}

var (
	usable     = right{"u+rwX", 0o600, 0}
	readable   = right{"u+r", 0o400, 0}
	private    = right{"600", 0o600, 0o077}
	privateDir = right{"700", 0o700, 0o077}
	unwritable = right{"go-w", 0, 0o022}
	notByAll   = right{"o-w", 0, 0o002}
)

// holds reports whether a mode is as it should be.
func (r right) holds(mode fs.FileMode) bool {
	must := r.must
	if mode.IsDir() && r == usable {
		must |= 0o100
	}
	return mode&must == must && mode&r.mustNot == 0
}

// give is how this user gets files to be as they should be. Only their owner changes a mode. So
// what this user needs and another has is given to this user first; what is only to be taken
// from others stays with its owner.
func (f Files) give(r right, paths ...string) Fix {
	if f.Windows {
		return Fix{Text: "give this user the right to use " + some(paths)}
	}
	var give, take, change []string
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			continue // it has gone meanwhile
		}
		word, foreign := f.Quote(path), theirs(info)
		if foreign && r.must != 0 {
			give = append(give, word)
		}
		switch {
		case r.holds(info.Mode()):
		case foreign && r.must == 0:
			take = append(take, word)
		default:
			change = append(change, word)
		}
	}
	chown := "sudo chown " + f.Quote(self()) + " "
	if r == privateDir {
		chown = "sudo chown -R " + f.Quote(self()) + " "
	}
	var commands []string
	for _, c := range []struct {
		words string
		paths []string
	}{{chown, give}, {"sudo chmod " + r.chmod + " ", take}, {"chmod " + r.chmod + " ", change}} {
		if len(c.paths) > 0 {
			commands = append(commands, c.words+strings.Join(c.paths, " "))
		}
	}
	if len(commands) == 0 {
		return Fix{Text: "find out what else keeps this user from " + some(paths)} // an immutable file, say
	}
	return Fix{strings.Join(commands, ", then "), commands}
}

// run is a fix of one command of Unix, and of the words before it alone where that is none.
func (f Files) run(words, command string) Fix {
	if f.Windows {
		return Fix{Text: words}
	}
	return Do(words+": %s", command)
}

// Readable is how this user gets to read a config. One of others stays theirs, but in a directory
// of this user's, where root may have left it.
func (f Files) Readable(path string) Fix {
	if to, err := replace.Follow(path); err == nil {
		path = to
	}
	if info, err := os.Stat(path); err == nil && theirs(info) && !mine(path) {
		return Fix{Text: "have its owner let this user read it, or name another file with --config, or HALDIR_CONFIG"}
	}
	return f.give(readable, path)
}

// mine reports whether the directory of a file is this user's.
func mine(path string) bool {
	info, err := os.Stat(filepath.Dir(path))
	return err == nil && !theirs(info)
}

// nearest is the nearest path, from a path up, at which there is something, be it a link that
// leads nowhere.
func nearest(path string) string {
	for {
		up := filepath.Dir(path)
		if _, err := os.Lstat(path); err == nil || up == path {
			return path
		}
		path = up
	}
}
