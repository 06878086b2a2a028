package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// unreadable takes the mapping of a file away, as a fault of the disk below it
// does, and leaves the file alone.
func unreadable(t *testing.T, path string) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		if !strings.HasSuffix(strings.TrimSpace(line), path) {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			t.Fatal(err)
		}
		if _, _, errno := unix.Syscall(unix.SYS_MPROTECT, from, to-from, unix.PROT_NONE); errno != 0 {
			t.Fatal(errno)
		}
		n++
	}
	if n == 0 {
		t.Fatalf("%s is not mapped", path)
	}
}

// hooked is a decider that does something in the transaction before it decides.
type hooked struct {
	ledger.Decider
	before func()
}

func (h hooked) Decide(c policy.Call, s policy.State) policy.Decision {
	h.before()
	return h.Decider.Decide(c, s)
}

// A memory fault says that the file could not be read, not what is in it.
func TestAMemoryFaultThatPassesIsNoDamage(t *testing.T) {
	clock := newClock()
	dir, _ := spree(t, clock.now)
	l, e := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now}), engine(t, shop())
	faulty := hooked{e, func() { unreadable(t, filepath.Join(dir, "haldir.db")) }}
	ctx := context.Background()
	if _, _, err := l.Reserve(ctx, pay("ses_0", "1"), faulty); !errors.Is(err, ledger.ErrDamaged) {
		t.Fatalf("while it cannot be read: %v", err)
	}
	if _, _, err := l.Reserve(ctx, pay("ses_0", "1"), e); !errors.Is(err, ledger.ErrDamaged) {
		t.Errorf("at once: %v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, _, err := l.Reserve(ctx, pay("ses_0", "1"), e)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the fault has passed: %v", err)
		}
	}
	verify(t, l)
}
