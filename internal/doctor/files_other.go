//go:build !unix

package doctor

import (
	"io/fs"
	"os"
)

// What a process may want to do with a file or directory.
const (
	toRead = iota
	toWrite
	toUse
	toMake
)

// access knows only whether there is such a file.
func access(path string, _ uint32) error {
	_, err := os.Stat(path)
	return err
}

// foreign does not know.
func foreign(fs.FileInfo) (other bool, who string) { return false, "" }

func theirs(fs.FileInfo) bool { return false }

func ofRoot(fs.FileInfo) bool { return false }

func self() string { return "" }
