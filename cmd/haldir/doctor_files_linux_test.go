package main_test

import (
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/doctor"
)

// What a config turns out to be is said at once: a pipe that nobody writes to, or a file without
// an end. A pipe that somebody writes to is read.
func TestDoctorOfAConfigThatIsNoFile(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.must("cp haldir.yaml right.yaml")
	for harm, text := range map[string]string{
		"mkfifo haldir.yaml":            "it is a pipe that nobody writes to",
		"ln -s /dev/zero haldir.yaml":   "it is larger than 16 MiB",
		"mkdir haldir.yaml":             "is a directory",
		"ln -s haldir.yaml haldir.yaml": "too many levels of symbolic links",
	} {
		p.must("rm -rf haldir.yaml && " + harm)
		r := p.doctor()
		if f := r.find(doctor.ConfigBroken); r.status != 2 || f == nil || !strings.Contains(f.Text, text) {
			t.Errorf("%s: exit status %d: %+v", harm, r.status, r.Findings)
		}
		if _, said, status := p.sh("haldir check"); status != 2 || !strings.Contains(said, text) {
			t.Errorf("%s: check: exit status %d: %s", harm, status, said)
		}
	}
	p.must("cat right.yaml | haldir check --config /dev/stdin")
	p.must("haldir check --config /dev/stdin < right.yaml")
}
