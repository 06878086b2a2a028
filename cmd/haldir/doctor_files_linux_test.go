package main_test

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/doctor"
	"github.com/haldir-mcp/haldir/internal/mcptest"
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

// A key of the checkpoints that is none keeps no call from passing; ledger recover mends it.
func TestDoctorOfACheckpointKeyThatIsNone(t *testing.T) {
	t.Parallel()
	for _, harm := range []string{": > state/checkpoint.key", "echo x > state/checkpoint.key", "rm state/checkpoint.key; mkdir state/checkpoint.key"} {
		p := newPatient(t)
		p.must("haldir audit verify && " + harm)
		p.must("haldir call toy/add --args '{}'")
		r := p.doctor()
		f := r.find(doctor.AuditChanged)
		if r.status != 4 || f == nil || !strings.Contains(f.Text, "the key that signs checkpoints is damaged") {
			t.Errorf("%s: exit status %d: %+v", harm, r.status, r.Findings)
			continue
		}
		p.commands(*f)
		p.must("haldir call toy/add --args '{}' && haldir audit verify")
	}
}

// What a compaction has left is said to be removed only if it is gone.
func TestDoctorOfRemainsThatStay(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.must("mkdir -p state/haldir.db.compact/full") // which is not removed as a file
	out, said, _ := p.sh("haldir doctor --fix --yes --json")
	var r report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Fixed) > 0 || r.find(doctor.CompactionLeft) == nil || !strings.Contains(said, "haldir.db.compact is still there") {
		t.Errorf("%q, %+v\n%s", r.Fixed, r.Findings, said)
	}
	p.must("mkdir bare && chmod 755 bare")
	p.env["HALDIR_STATE_DIR"] = p.path("bare")
	for range 2 { // the first look makes it no more haldir's than it was
		if f := p.doctor("--fix", "--yes").find(doctor.StateMode); f == nil || len(f.Commands) > 0 {
			t.Errorf("a directory that is not haldir's: %+v", f)
		}
	}
}

// A setting that is wrong is said once, and so is a directory that is gone.
func TestDoctorSaysOneThingOnce(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	for shell, text := range map[string]string{
		"HALDIR_LOG_LEVEL=zz haldir doctor --json": "correct the flag, the variable or the key that it names",
		"mkdir -p x/haldir && cp haldir.yaml x/haldir && env -u HALDIR_CONFIG -u HALDIR_STATE_DIR HOME= XDG_CONFIG_HOME=$PWD/x haldir doctor --json": "correct the flag, the variable or the key that it names",
		"env -u HOME haldir doctor --json":                               "set the variable",
		"mkdir gone && cd gone && rmdir ../gone && haldir doctor --json": "go to a directory that is there",
	} {
		out, said, _ := p.sh(shell)
		var r report
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Errorf("%s: %v\n%s%s", shell, err, out, said)
		}
		wrong := slices.DeleteFunc(r.Findings, func(f doctor.Finding) bool { return f.Severity == doctor.Fine })
		if len(wrong) != 1 || !strings.Contains(wrong[0].Fix, text) {
			t.Errorf("%s: not once %q: %+v", shell, text, wrong)
		}
	}
	for _, wait := range []string{"0", "-5s"} {
		if out, said, status := p.sh("haldir doctor --wait " + wait); status != 2 || !strings.Contains(said, "--wait") || out != "" {
			t.Errorf("--wait %s: exit status %d: %s%s", wait, status, out, said)
		}
	}
}

// A path need not be UTF-8, and the command for it is one all the same.
func TestDoctorOfAPathThatIsNoText(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.env["HALDIR_STATE_DIR"] = p.path("a\xff b'c$\xfe")
	p.must("haldir call toy/add --args '{}'")
	p.must(`chmod 755 "$HALDIR_STATE_DIR"`)
	f := p.doctor().find(doctor.StateMode)
	if f == nil {
		t.Fatal("it does not say that the directory is open")
	}
	p.commands(*f)
	if f := p.doctor().find(doctor.StateMode); f != nil {
		t.Errorf("after its fix it still says %+v", *f)
	}
}

// A file system that has no room for another file is full, however much space is left.
func TestDoctorOnADiskWithoutInodes(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	script := `set -e
mkdir saved && cp -a state/. saved/
mount -t tmpfs -o nr_inodes=40,mode=0700 tmpfs state
touch mounted
cp -a saved/. state/
haldir doctor --json > low.json
set +e
i=0; while true 2> /dev/null > state/film$i; do i=$((i+1)); done
haldir doctor --json > full.json
rm state/film*
true
`
	_, said, status := p.sh("unshare -m sh -c '" + script + "'")
	if _, err := os.Stat(p.path("mounted")); err != nil {
		mcptest.Unavailable(t, "no mounts of its own: %s", said)
	}
	if status != 0 {
		t.Fatalf("exit status %d: %s", status, said)
	}
	for name, want := range map[string]doctor.Finding{
		"low.json":  {ID: doctor.DiskLow, Severity: doctor.Warning, Text: "is nearly full: it has room for"},
		"full.json": {ID: doctor.DiskFull, Severity: doctor.Failure, Text: "is full: it has room for no more files"},
	} {
		var r report
		if err := json.Unmarshal([]byte(p.must("cat "+name)), &r); err != nil {
			t.Fatal(err)
		}
		if f := r.find(want.ID); f == nil || f.Severity != want.Severity || !strings.Contains(f.Text, want.Text) {
			t.Errorf("%s: %+v", name, r.Findings)
		}
	}
}

// A haldir that root runs once in a user's directory does not lock the user out.
func TestRootLeavesFilesToTheirUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		mcptest.Unavailable(t, "only root can make files in the directory of another user")
	}
	p := newPatient(t)
	p.must("chown -R 65534 . && haldir policy add --type deny --tools toy/zap && printf x | haldir secret set q")
	if out := p.must("find . ! -user 65534"); out != "" {
		t.Errorf("these are root's:\n%s", out)
	}
	for _, made := range []string{".haldir.yaml.lock", "state/secrets.age", "state/secrets.key", "state/secrets.lock"} {
		p.must("test -f " + made)
	}
}

// What keeps a change of the config from being made is said at once, with what to do.
func TestAConfigThatCannotBeReplaced(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.must("mkfifo .haldir.yaml.lock")
	if _, said, status := p.sh("haldir policy add --type deny --tools toy/zap"); status != 1 || !strings.Contains(said, ".haldir.yaml.lock is no file; take it away") {
		t.Errorf("a lock that is a pipe: exit status %d: %s", status, said)
	}
	p.must("rm .haldir.yaml.lock")
	_, said, status := p.sh("unshare -m sh -c 'mount --bind haldir.yaml haldir.yaml && touch mounted && haldir policy add --type deny --tools toy/zap'")
	if _, err := os.Stat(p.path("mounted")); err != nil {
		mcptest.Unavailable(t, "no mounts of its own: %s", said)
	}
	if status != 1 || !strings.Contains(said, "mount the directory "+p.dir+" instead") {
		t.Errorf("a file that is mounted: exit status %d: %s", status, said)
	}
}

// What follows from a file that cannot be used is not blamed on a process.
func TestDoctorOfALockThatIsAPipe(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"haldir.lock", "haldir.head"} {
		p := newPatient(t)
		p.must("cd state && rm -f *.pid && echo 1 > haldir.lock.pid && rm " + file + " && mkdir x && mv x " + file)
		if file == "haldir.lock" {
			p.must("cd state && rmdir haldir.lock && mkfifo haldir.lock")
		}
		r := p.doctor()
		f := r.find(doctor.StateUnusable)
		if f == nil || !strings.Contains(f.Text, file+" is no file") || r.find(doctor.LedgerBusy) != nil || r.find(doctor.LedgerFailed) != nil {
			t.Errorf("%s: %+v", file, r.Findings)
			continue
		}
		p.commands(*f)
		if r := p.doctor(); r.status != 0 {
			t.Errorf("%s: after its fix: %+v", file, r.Findings)
		}
	}
}
