//go:build unix

package replace

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// alike gives a new file the mode of another and, where the system lets it, the owner. A
// file that cannot be given away is not to be read by more people than before.
func alike(f *os.File, was fs.FileInfo) error {
	mode := was.Mode().Perm()
	if st, ok := was.Sys().(*syscall.Stat_t); ok {
		if mine, err := f.Stat(); err != nil {
			return err
		} else if own, ok := mine.Sys().(*syscall.Stat_t); ok && (own.Uid != st.Uid || own.Gid != st.Gid) {
			if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
				if err := f.Chown(-1, int(st.Gid)); err != nil {
					mode &^= 0o070
				}
			}
		}
	}
	return f.Chmod(mode)
}

// syncDir makes a rename in dir last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
