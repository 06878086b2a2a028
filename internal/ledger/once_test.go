package ledger_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/internal/ledger"
)

func init() {
	workers["once"] = func(config []byte) error {
		var dir string
		if err := json.Unmarshal(config, &dir); err != nil {
			return err
		}
		l, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now, Logger: zerolog.Nop(), NoSync: true})
		if err != nil {
			return err
		}
		o, err := l.BeginOnce(context.Background(), sha256.Sum256([]byte("name")), sha256.Sum256([]byte("body")))
		if err != nil {
			return err
		}
		fmt.Println(o.State)
		_, err = fmt.Fscanln(os.Stdin)
		return err
	}
}

func begin(t *testing.T, l *ledger.Ledger, name, body string) ledger.Once {
	t.Helper()
	o, err := l.BeginOnce(context.Background(), sha256.Sum256([]byte(name)), sha256.Sum256([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func end(t *testing.T, l *ledger.Ledger, name string, answer []byte) {
	t.Helper()
	if err := l.EndOnce(context.Background(), sha256.Sum256([]byte(name)), answer); err != nil {
		t.Fatal(err)
	}
}

func TestARequestIsDoneOnce(t *testing.T) {
	clock := newClock()
	dir := stateDir(t)
	l := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	began := clock.now()
	expect := func(what string, got ledger.Once, state ledger.OnceState, answer string) {
		t.Helper()
		want := ledger.Once{State: state, Since: began}
		if answer != "" {
			want.Answer = []byte(answer)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	expect("the first", begin(t, l, "a", "body"), ledger.OnceNew, "")
	expect("while it runs", begin(t, l, "a", "body"), ledger.OnceRunning, "")
	expect("another body", begin(t, l, "a", "other"), ledger.OnceOther, "")
	end(t, l, "a", []byte("answer"))
	expect("done", begin(t, l, "a", "body"), ledger.OnceDone, "answer")
	expect("another body", begin(t, l, "a", "other"), ledger.OnceOther, "")
	expect("another name", begin(t, l, "b", "body"), ledger.OnceNew, "")
	end(t, l, "b", nil) // nothing was done
	expect("taken back", begin(t, l, "b", "other"), ledger.OnceNew, "")
	end(t, l, "b", nil)

	clock.add(24*time.Hour - 1)
	expect("kept for a day", begin(t, l, "a", "body"), ledger.OnceDone, "answer")
	clock.add(1)
	began = clock.now()
	expect("forgotten", begin(t, l, "a", "other"), ledger.OnceNew, "")
	end(t, l, "a", []byte("second"))
	expect("another one", begin(t, l, "a", "other"), ledger.OnceDone, "second")
	clock.add(48 * time.Hour)
	for i := range 3 {
		begin(t, l, fmt.Sprint(i), "")
	}
	inspect(t, dir, func(tx *bolt.Tx) {
		if n := len(space(tx, 'i')); n != 6 { // a key and a time each
			t.Errorf("%d entries, want those of three requests", n)
		}
	})
}

func TestARequestOfAProcessThatDiedIsLost(t *testing.T) {
	dir := stateDir(t)
	l := quick(t, dir)
	p := spawn(t, "once", dir)
	p.expect(t, fmt.Sprint(ledger.OnceNew))
	if o := begin(t, l, "name", "body"); o.State != ledger.OnceRunning {
		t.Errorf("while it lives: %v", o.State)
	}
	p.kill()
	if o := begin(t, l, "name", "body"); o.State != ledger.OnceLost {
		t.Errorf("when it is dead: %v", o.State)
	}
}
