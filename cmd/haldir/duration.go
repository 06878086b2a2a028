package main

import (
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"github.com/haldir-mcp/haldir/internal/config"
)

// duration is the value of a flag that takes what a duration of haldir.yaml may be.
type duration struct{ at *time.Duration }

// durationVar defines such a flag.
func durationVar(f *pflag.FlagSet, at *time.Duration, name string, value time.Duration, does string) {
	*at = value
	f.Var(duration{at}, name, does)
}

func (d duration) Set(text string) (err error) {
	*d.at, err = config.ReadDuration(text)
	if err != nil && longSpan().MatchString(text) {
		return fmt.Errorf("%q is too long; the longest is 36499d", text)
	}
	return err
}

// longSpan is what can be no duration for one reason only: there is no room for it.
var longSpan = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9]+[smhd]$`) })

// String is what help shows as the default: nothing for none.
func (d duration) String() string {
	if d.at == nil || *d.at == 0 {
		return ""
	}
	return d.at.String()
}

func (duration) Type() string { return "duration" }
