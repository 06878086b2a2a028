//go:build unix

package secret

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// private refuses a key that others may read.
func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("others may read %s (mode %04o); close it with: chmod 600 %s", path, mode, path)
	}
	return nil
}

// giveToOwner gives a file that root has just made to the owner of its directory, who would be
// locked out otherwise. Where the system does not let it, haldir doctor names the file.
func giveToOwner(f *os.File) {
	dir, err := os.Stat(filepath.Dir(f.Name()))
	if err != nil || os.Geteuid() != 0 {
		return
	}
	if st, ok := dir.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
		_ = f.Chown(int(st.Uid), int(st.Gid))
	}
}

// syncDir makes a rename in dir last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
