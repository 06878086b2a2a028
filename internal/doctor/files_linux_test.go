package doctor_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	lookup "os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/haldir-mcp/haldir/internal/doctor"
	"github.com/haldir-mcp/haldir/internal/mcptest"
)

const nobody = 65534

// user is who haldir runs as: this one, or nobody where this one is root, who may do anything.
type user struct {
	t   *testing.T
	dir string // a directory of this user
}

func newUser(t *testing.T) user {
	t.Helper()
	dir, err := os.MkdirTemp("", "haldir-test-") // t.TempDir lies in one that nobody can enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = filepath.WalkDir(dir, func(p string, _ os.DirEntry, _ error) error { return os.Chmod(p, 0o700) })
		_ = os.RemoveAll(dir)
	})
	u := user{t, dir}
	u.make("home/state/procs/")
	for _, name := range []string{"haldir.db", "haldir.lock", "haldir.turn", "haldir.head", "checkpoints.log", "checkpoint.key", "secrets.age", "secrets.lock"} {
		u.make("home/state/" + name)
	}
	u.make("home/haldir.yaml")
	u.root("chmod 755 .")
	if os.Geteuid() == 0 {
		u.root("chown -R 65534 home")
	}
	return u
}

func (u user) path(name string) string { return filepath.Join(u.dir, name) }

// make makes a file, or a directory with all above it.
func (u user) make(name string) {
	u.t.Helper()
	err := os.MkdirAll(filepath.Dir(u.dir+"/"+name), 0o700)
	if !strings.HasSuffix(name, "/") {
		err = errors.Join(err, os.WriteFile(u.path(name), nil, 0o600))
	}
	if err != nil {
		u.t.Fatal(err)
	}
}

// root runs a command as who runs the test.
func (u user) root(shell string) {
	u.t.Helper()
	cmd := exec.Command("sh", "-c", shell)
	cmd.Dir = u.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		u.t.Fatalf("%s: %v: %s", shell, err, out)
	}
}

// run runs a command that doctor has said, as the user, and by sudo as root.
func (u user) run(command string) {
	u.t.Helper()
	if as, sudo := strings.CutPrefix(command, "sudo "); sudo {
		u.root(as)
		return
	}
	cmd := exec.Command("sh", "-c", command)
	cmd.Dir = u.dir
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		u.t.Errorf("%s: %v: %s", command, err, out)
	}
}

// look is what f finds as the user: a thread of its own, which ends with it, has the user's id.
func (u user) look(f func(doctor.Files) []doctor.Finding) (found []doctor.Finding) {
	u.t.Helper()
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		if os.Geteuid() == 0 {
			runtime.LockOSThread()
			for _, id := range []uintptr{unix.SYS_SETGROUPS, unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
				who := uintptr(nobody)
				if id == unix.SYS_SETGROUPS {
					who = 0 // that many
				}
				if _, _, no := unix.RawSyscall(id, who, who, who); no != 0 {
					err = errors.Join(err, no)
				}
			}
		}
		found = f(doctor.Files{Quote: same, Free: func(string) (int64, bool) { return 0, false }})
	}()
	if <-done; err != nil {
		mcptest.Unavailable(u.t, "no other user: %v", err)
	}
	return found
}

// me is the user's name.
func (u user) me() string {
	id := nobody
	if os.Geteuid() != 0 {
		id = os.Geteuid()
	}
	who, err := lookup.LookupId(strconv.Itoa(id))
	if err != nil {
		return strconv.Itoa(id)
	}
	return who.Username
}

// deny is one way in which files are not to be used as they should be.
type deny struct {
	root bool // only root can do it
	harm string
	id   doctor.ID
	as   doctor.Severity
	text string
	fix  string // with USER for this one; "" for none that is a command
}

// TestRights: doctor says what keeps a user from files, or lets others at them; and what it says
// mends that, as it is printed.
func TestRights(t *testing.T) {
	state := func(u user) func(doctor.Files) []doctor.Finding {
		return func(f doctor.Files) []doctor.Finding { return f.State(u.path("home/state")) }
	}
	config := func(u user) func(doctor.Files) []doctor.Finding {
		return func(f doctor.Files) []doctor.Finding { return f.Config(u.path("home/haldir.yaml")) }
	}
	readable := func(u user) func(doctor.Files) []doctor.Finding {
		return func(f doctor.Files) (found []doctor.Finding) {
			if file, err := os.Open(u.path("home/haldir.yaml")); err == nil {
				return append(found, doctor.Finding{Text: fmt.Sprint("it can be read", file.Close())})
			}
			return append(found, doctor.New(doctor.ConfigBroken, doctor.Failure, "config", f.Readable(u.path("home/haldir.yaml")), "it cannot be read"))
		}
	}
	logs := func(name string) func(u user) func(doctor.Files) []doctor.Finding {
		return func(u user) func(doctor.Files) []doctor.Finding {
			return func(f doctor.Files) []doctor.Finding { return f.Log(u.path("home/" + name)) }
		}
	}
	log := logs("log")
	const unusable, failure, warning = doctor.StateUnusable, doctor.Failure, doctor.Warning
	for _, c := range []struct {
		look func(user) func(doctor.Files) []doctor.Finding
		deny
	}{
		{state, deny{false, "chmod 400 home/state/haldir.db", unusable, failure, "haldir.db (mode 0400)", "chmod u+rwX home/state/haldir.db"}},
		{state, deny{false, "chmod 0 home/state/haldir.db", unusable, failure, "haldir.db (mode 0000)", "chmod u+rwX home/state/haldir.db"}},
		{state, deny{false, "chmod 0 home/state/haldir.lock", unusable, failure, "haldir.lock", "chmod u+rwX home/state/haldir.lock"}},
		{state, deny{true, "chown 0:0 home/state/haldir.lock", unusable, failure, "haldir.lock (mode 0600, of the user root)", "sudo chown USER home/state/haldir.lock"}},
		{state, deny{true, "chown 0:0 home/state/haldir.turn; chmod 0 home/state/haldir.turn", unusable, failure, "haldir.turn", "sudo chown USER home/state/haldir.turn, then chmod u+rwX home/state/haldir.turn"}},
		{state, deny{false, "chmod 500 home/state/procs", unusable, failure, "procs", "chmod u+rwX home/state/procs"}},
		{state, deny{false, "chmod 0 home/state/haldir.head", unusable, failure, "haldir.head", "chmod u+rwX home/state/haldir.head"}},
		{state, deny{false, "chmod 400 home/state/haldir.head", doctor.StateFileAccess, warning, "haldir.head", "chmod u+rwX home/state/haldir.head"}},
		{state, deny{false, "chmod 400 home/state/checkpoints.log", doctor.StateFileAccess, warning, "checkpoints.log", "chmod u+rwX home/state/checkpoints.log"}},
		{state, deny{true, "chown 0:0 home/state/secrets.*", doctor.StateFileAccess, warning, "secrets.age", "sudo chown USER home/state/secrets.age home/state/secrets.lock"}},
		{state, deny{true, "chown -R 0:0 home/state; chmod 711 home/state", unusable, failure, "nothing can be written in", "sudo chown -R USER home/state, then chmod 700 home/state"}},
		{state, deny{true, "chown -R 0:0 home/state", unusable, failure, "nothing can be written in", ""}}, // whose it is cannot be seen
		{state, deny{true, "rm home/state/haldir.*; chown 0:0 home/state; chmod 755 home/state", unusable, failure, "nothing can be written in", ""}},
		{state, deny{false, "rm home/state/haldir.db home/state/haldir.head; chmod 755 home/state", doctor.StateMode, failure, "is open to others", ""}},
		{state, deny{false, "mv home/state home/real; ln -s real home/state; chmod 755 home/real", doctor.StateMode, failure, "is open to others", "chmod 700 home/real"}},
		{state, deny{true, "touch home/ca; chmod 600 home/ca; ln -s ../ca home/state/secrets.pem", doctor.StateFileAccess, warning, "secrets.pem leads to home/ca, which this user has no right to use", ""}},
		{state, deny{false, "touch home/ca; chmod 755 home/ca; ln -s ../ca home/state/ca.pem; ln -s ../ca home/state/secrets.pem; touch home/state/notes; chmod 644 home/state/notes", "", "", "", ""}},
		{state, deny{false, "mkdir home/bin; touch home/bin/tool; chmod 755 home/bin/tool; ln -s ../bin home/state/locks", "", "", "", ""}},
		{state, deny{false, "touch home/state/haldir.compact; chmod 0 home/state/haldir.compact", doctor.StateFileAccess, warning, "haldir.compact", "chmod u+rwX home/state/haldir.compact"}},
		{state, deny{false, "touch home/state/haldir.ship-0a; chmod 0 home/state/haldir.ship-0a", doctor.StateFileAccess, warning, "haldir.ship-0a", "chmod u+rwX home/state/haldir.ship-0a"}},
		{state, deny{false, "touch home/state/haldir.bell; chmod 400 home/state/haldir.bell", doctor.StateFileAccess, warning, "haldir.bell", "chmod u+rwX home/state/haldir.bell"}},
		{state, deny{true, "touch home/state/haldir.lock.pid; chmod 600 home/state/haldir.lock.pid", doctor.StateFileAccess, warning, "haldir.lock.pid", "sudo chown USER home/state/haldir.lock.pid"}},
		{state, deny{false, "touch home/state/procs/a; chmod 400 home/state/procs/a", doctor.StateFileAccess, warning, "procs/a", "chmod u+rwX home/state/procs/a"}},
		{state, deny{false, "mkdir home/state/watchers; touch home/state/watchers/a; chmod 0 home/state/watchers/a", doctor.StateFileAccess, warning, "watchers/a", "chmod u+rwX home/state/watchers/a"}},
		{state, deny{false, "chmod 500 home/state", unusable, failure, "nothing can be written in", "chmod 700 home/state"}},
		{state, deny{false, "rm home/state/haldir.lock; mkfifo home/state/haldir.lock", unusable, failure, "haldir.lock is no file", "set it aside, and look again: mv -n home/state/haldir.lock home/state/aside-haldir.lock"}},
		{state, deny{false, "rm home/state/checkpoints.log; mkdir home/state/checkpoints.log", doctor.StateFileAccess, warning, "checkpoints.log is no file", "set it aside, and look again: mv -n home/state/checkpoints.log home/state/aside-checkpoints.log"}},
		{state, deny{false, "mkdir home/state/locks; mkdir home/state/locks/a", doctor.StateFileAccess, warning, "locks/a is no file", "set it aside, and look again: mv -n home/state/locks/a home/state/aside-a"}},
		{state, deny{false, "rm home/state/checkpoint.key; mkfifo home/state/checkpoint.key; touch home/state/aside-checkpoint.key", doctor.StateFileAccess, warning, "checkpoint.key is no file", "set it aside, and look again: mv -n home/state/checkpoint.key home/state/aside-checkpoint.key-2"}},
		{state, deny{false, "rm -r home/state; chmod 555 home", unusable, failure, "cannot be made in", "chmod u+rwX home"}},
		{state, deny{true, "rm -r home/state; chown 0:0 home; chmod 755 home", unusable, failure, "cannot be made in", "make it for this user: sudo install -d -m 700 -o USER home/state; or name another directory with --state-dir, or HALDIR_STATE_DIR"}},
		{state, deny{false, "rm -r home/state; ln -s gone home/state", unusable, failure, "home/state is a link that leads nowhere", "make what the link leads to: mkdir -p -m 700 home/gone"}},
		{state, deny{true, "chown 0:0 home/state/haldir.db; chmod 666 home/state/haldir.db", doctor.StateFileMode, warning, "haldir.db (mode 0666, of the user root)", "sudo chown USER home/state/haldir.db, then chmod 600 home/state/haldir.db"}},
		{state, deny{false, "chmod 644 home/state/haldir.db; mv home/state/haldir.db home/; ln -s ../haldir.db home/state/haldir.db", doctor.StateFileMode, warning, "home/state/haldir.db leads to home/haldir.db, to which others have rights (mode 0644)", ""}},
		{state, deny{false, "chmod 777 home", doctor.StateFileMode, warning, "in home everybody (mode 0777) can put another home/state in its place", "chmod o-w home"}},
		{state, deny{true, "chown 0:0 home; chmod 777 home", doctor.StateFileMode, warning, "in home everybody", "sudo chmod o-w home"}},
		{config, deny{false, "chmod 666 home/haldir.yaml", doctor.ConfigMode, warning, "home/haldir.yaml can be written by everybody", "chmod go-w home/haldir.yaml"}},
		{config, deny{false, "mkdir home/real; chmod 777 home/real; mv home/haldir.yaml home/real; ln -s real/haldir.yaml home/haldir.yaml", doctor.ConfigMode, warning, "home/real can be written by everybody", "chmod go-w home/real"}},
		{config, deny{true, "chown 1 home/haldir.yaml", doctor.ConfigMode, warning, "home/haldir.yaml is of the user", "sudo chown USER home/haldir.yaml"}},
		{config, deny{true, "chown 1 home home/haldir.yaml; chmod 755 home", doctor.ConfigMode, warning, "home/haldir.yaml is of the user", ""}},
		{config, deny{true, "chown 1 home; chmod 755 home", doctor.ConfigMode, warning, "home is of the user", ""}},
		{readable, deny{false, "chmod 0 home/haldir.yaml", doctor.ConfigBroken, failure, "", "chmod u+r home/haldir.yaml"}},
		{readable, deny{true, "chown 0 home/haldir.yaml; chmod 600 home/haldir.yaml", doctor.ConfigBroken, failure, "", "sudo chown USER home/haldir.yaml"}},
		{readable, deny{true, "chown 0 home home/haldir.yaml; chmod 755 home; chmod 600 home/haldir.yaml", doctor.ConfigBroken, failure, "", ""}},
		{config, deny{true, "chown 0 home home/haldir.yaml; chmod 755 home", "", "", "", ""}},
		{config, deny{true, "touch home/.haldir.yaml.lock; chmod 600 home/.haldir.yaml.lock", doctor.ConfigLock, warning, ".haldir.yaml.lock (mode 0600, of the user root)", "sudo chown USER home/.haldir.yaml.lock"}},
		{config, deny{false, "mkfifo home/.haldir.yaml.lock", doctor.ConfigLock, warning, ".haldir.yaml.lock is no file", "mv -n home/.haldir.yaml.lock home/aside-haldir.yaml.lock"}},
		{log, deny{false, "mkdir home/log", doctor.LogFile, failure, "it is a directory", ""}},
		{log, deny{false, "touch home/log; chmod 400 home/log", doctor.LogFile, failure, "permission denied", "chmod u+rwX home/log"}},
		{log, deny{true, "touch home/log", doctor.LogFile, failure, "permission denied", "sudo chown USER home/log"}},
		{log, deny{false, "chmod 500 home", doctor.LogFile, failure, "permission denied", "chmod u+rwX home"}},
		{log, deny{true, "touch home/log; chown 0 home; chmod 755 home", doctor.LogFile, failure, "permission denied", ""}},
		{log, deny{true, "chown 0 home; chmod 755 home", doctor.LogFile, failure, "permission denied", ""}},
		{log, deny{false, "ln -s gone home/log", "", "", "", ""}},
		{logs("haldir.yaml/log"), deny{false, "true", doctor.LogFile, failure, "not a directory", ""}},
		{logs("a/b/log"), deny{false, "true", doctor.LogFile, failure, "its directory is not there", "mkdir -p home/a/b"}},
	} {
		t.Run(c.harm+" "+c.text, func(t *testing.T) {
			if c.root && os.Geteuid() != 0 {
				mcptest.Unavailable(t, "only root can have a file of another user")
			}
			u := newUser(t)
			if c.root {
				u.root(c.harm)
			} else {
				u.run(c.harm)
			}
			var hit []doctor.Finding
			plain := strings.NewReplacer(u.path("")+"/", "", u.me(), "USER").Replace
			find := func() {
				hit = nil
				for _, f := range u.look(c.look(u)) {
					if c.id == "" || f.ID == c.id && strings.Contains(plain(f.Text), c.text) {
						hit = append(hit, f)
					}
				}
			}
			find()
			if c.id == "" {
				if len(hit) > 0 {
					t.Errorf("what is well is not: %+v", hit)
				}
				return
			}
			if len(hit) != 1 || hit[0].Severity != c.as || hit[0].Fix == "" {
				t.Fatalf("want one %s, an %s, with %q: %+v", c.id, c.as, c.text, u.look(c.look(u)))
			}
			if c.fix == "" {
				if len(hit[0].Commands) > 0 || hit[0].Mend != nil || strings.Contains(hit[0].Fix, "chown") {
					t.Errorf("no command can help: %+v", hit[0])
				}
				return
			}
			if fix := plain(hit[0].Fix); fix != c.fix {
				t.Errorf("the fix is %q, not %q", fix, c.fix)
			}
			for _, command := range hit[0].Commands {
				u.run(command)
			}
			if find(); len(hit) > 0 {
				t.Errorf("after its fix it still says %+v", hit)
			}
		})
	}
}

// TestNoCommandsOfUnixOnWindows: its shell has none of them, so there are words.
func TestNoCommandsOfUnixOnWindows(t *testing.T) {
	u := newUser(t)
	u.run("cd home/state && rm checkpoints.log && mkdir checkpoints.log && chmod 0 haldir.db secrets.age")
	found := u.look(func(f doctor.Files) []doctor.Finding {
		f.Windows = true
		return append(f.State(u.path("home/state")), f.Log(u.path("home/a/b/log"))...)
	})
	if len(found) != 4 {
		t.Errorf("not four things are wrong: %+v", found)
	}
	for _, f := range found {
		if len(f.Commands) > 0 || f.Fix == "" || strings.Contains(f.Fix, "mv ") || strings.Contains(f.Fix, "chmod") {
			t.Errorf("%+v", f)
		}
	}
}
