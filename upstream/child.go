package upstream

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/wire"
)

// The closing ladder, counted from the moment the child's stdin is closed. The
// host gives haldir half a second in all.
const (
	termAfter = 150 * time.Millisecond
	killAfter = 300 * time.Millisecond
	// lastWords is how long output is read after the process is gone.
	lastWords = 50 * time.Millisecond
	// exitAfter is how long a process is waited for that has closed its output, to be able to
	// say what it died of: on a busy machine its exit is seen a while later.
	exitAfter = 250 * time.Millisecond
)

// child is a stdio server and its family, which ends with it, and with haldir.
type child struct {
	cmd    *exec.Cmd
	family family
	stdin  io.WriteCloser
	stdout io.ReadCloser
	stderr *os.File
	clean  func(string) string // takes secrets out
	exited chan struct{}       // closed when the process is gone and reaped
	silent chan struct{}       // closed when its stderr has been read to the end
	err    error               // its exit, valid after exited
	wg     sync.WaitGroup

	mu   sync.Mutex
	last string // the last line it wrote to stderr
}

// isHaldir reports whether a command is a haldir: by its name, or as the very program that
// runs, by the path that it is found at.
func isHaldir(command, path string) bool {
	if strings.TrimSuffix(filepath.Base(command), ".exe") == "haldir" {
		return true
	}
	self, unknown := os.Executable()
	if unknown != nil {
		return false
	}
	a, errA := os.Stat(path)
	b, errB := os.Stat(self)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

func startChild(guard *Guard, cfg config.Upstream, own []string, r *config.Resolver, log zerolog.Logger, clean func(string) string) (*child, error) {
	texts := append([]string{cfg.Command, cfg.Cwd}, cfg.Args...)
	for i, t := range texts {
		v, err := r.Resolve(t)
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", cfg.Command, err)
		}
		texts[i] = v
	}
	path, notFound := find(cfg, texts[0], r)
	if !isHaldir(texts[0], path) {
		own = nil
	}
	env, err := environment(cfg, own, r)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", cfg.Command, err)
	}
	cmd := exec.Command(texts[0], texts[2:]...) //nolint:noctx // its life is the connection's, ended by the ladder
	cmd.Dir, cmd.Env = texts[1], env
	if !strings.ContainsAny(texts[0], separators) {
		cmd.Path, cmd.Err = path, notFound
	}
	if err := enters(cmd.Dir); err != nil {
		return nil, &StartError{Command: cfg.Command, Err: err}
	}
	c := &child{cmd: cmd, family: family{guard: guard}, clean: clean, exited: make(chan struct{}), silent: make(chan struct{})}
	// Pipes of our own: those of exec.Cmd close under a reader when the child
	// exits, and the last words would be lost.
	stdinR, stdinW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	stdoutR, stdoutW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, stdinR.Close(), stdinW.Close())
	}
	stderrR, stderrW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, stdinR.Close(), stdinW.Close(), stdoutR.Close(), stdoutW.Close())
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdinR, stdoutW, stderrW
	c.stdin, c.stdout, c.stderr = stdinW, stdoutR, stderrR

	started := make(chan error)
	c.wg.Go(func() { c.run(started) })
	err = <-started
	err2 := errors.Join(stdinR.Close(), stdoutW.Close(), stderrW.Close())
	if err != nil {
		c.wg.Wait()
		_ = errors.Join(stdinW.Close(), stdoutR.Close(), stderrR.Close(), err2) // nothing was started
		file := cmd.Path
		if !filepath.IsAbs(file) {
			file = filepath.Join(cmd.Dir, file)
		}
		return nil, startError(cfg, file, err)
	}
	c.wg.Go(func() { c.logStderr(log) })
	return c, nil
}

// ErrNoProgram says that an upstream's command is not there.
var ErrNoProgram = errors.New("there is no such program")

// StartError says why a program could not be started.
type StartError struct {
	Command string // as the config has it
	File    string // that its mode keeps from being executed; "" if it is not that
	Err     error
}

func (e *StartError) Error() string { return fmt.Sprintf("start %s: %v", e.Command, e.Err) }

func (e *StartError) Unwrap() error { return e.Err }

// startError says what is wrong with the file that a command stands for.
func startError(cfg config.Upstream, file string, err error) error {
	e := &StartError{Command: cfg.Command, Err: err}
	if errors.Is(err, exec.ErrNotFound) {
		e.Err = fmt.Errorf("%w on PATH (%s)", ErrNoProgram, os.Getenv("PATH"))
		if _, set := pathOf(cfg); set {
			e.Err = fmt.Errorf("%w on the PATH that its env sets", ErrNoProgram)
		}
		return e
	}
	info, statErr := os.Stat(file)
	switch {
	case errors.Is(statErr, fs.ErrNotExist):
		e.Err = ErrNoProgram
	case statErr != nil: // err says as much
	case info.IsDir():
		e.Err = fmt.Errorf("%s is a directory", file)
	case errors.Is(err, fs.ErrPermission) && info.Mode()&0o111 == 0:
		e.File, e.Err = file, fmt.Errorf("%s is not executable (mode %04o)", file, info.Mode().Perm())
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist): // of a file that is there
		if program := interpreter(file); program != "" {
			e.Err = fmt.Errorf("its interpreter %q, which the first line of %s names, is missing or cannot be executed", program, file)
		} else if errors.Is(err, fs.ErrNotExist) {
			e.Err = fmt.Errorf("%s needs a loader that is missing: it was built for another system", file)
		}
	case errors.Is(err, syscall.ENOEXEC):
		e.Err = fmt.Errorf("%s is neither a program of this system nor a script whose first line names its interpreter, such as #!/bin/sh", file)
	}
	return e
}

// interpreter is what the first line of a script names, if that cannot be executed. Its line may
// end as on Windows, and then so does the name.
func interpreter(script string) string {
	f, err := os.Open(script)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()              // only read from
	head, _ := io.ReadAll(io.LimitReader(f, 256)) // as much as Linux reads; what is cut short is none
	line, _, _ := strings.Cut(string(head), "\n")
	line, is := strings.CutPrefix(line, "#!")
	words := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
	if !is || len(words) == 0 {
		return ""
	}
	if info, err := os.Stat(words[0]); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
		return ""
	}
	return words[0]
}

// enters says why a program cannot be started in a directory; "" is that of haldir.
func enters(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case dir == "" || err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("its directory %s (cwd) is no directory", dir)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("its directory %s (cwd) does not exist", dir)
	}
	return fmt.Errorf("its directory (cwd) cannot be used: %w", err)
}

// run starts the process and waits for it, on a thread that lives as long and is
// used for nothing else: Linux kills a child when the thread that made it ends,
// and Go ends a thread whose goroutine has ended locked to it.
func (c *child) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := c.family.start(c.cmd)
	started <- err
	if err != nil {
		return
	}
	c.err = c.cmd.Wait()
	close(c.exited)
}

// stderrLine bounds a logged line.
const stderrLine = 8 << 10

func (c *child) logStderr(log zerolog.Logger) {
	defer close(c.silent)
	defer func() { _ = c.stderr.Close() }() // only read from
	lines := bufio.NewReaderSize(c.stderr, stderrLine)
	for {
		line, err := lines.ReadSlice('\n')
		text := wire.Printable(c.clean(strings.TrimRight(string(line), "\r\n")), shown)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = lines.ReadSlice('\n') // the rest of a longer line is not kept
		}
		if text != "" {
			c.mu.Lock()
			c.last = text
			c.mu.Unlock()
			log.Info().Str("stderr", text).Msg("upstream says")
		}
		if err != nil {
			return
		}
	}
}

// explain adds to the error of a broken pipe what the child died of.
func (c *child) explain(err error) error {
	select {
	case <-c.exited:
	case <-time.After(exitAfter):
		return err
	}
	select {
	case <-c.silent:
	case <-time.After(lastWords): // what it has left behind may hold it open
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	why := "exited"
	if c.err != nil {
		why = "ended: " + c.err.Error()
	}
	if c.last != "" {
		why += fmt.Sprintf(" (its last words: %s)", c.last)
	}
	return fmt.Errorf("the process %s: %w", why, err)
}

// end takes the ladder: stdin is closed already; TERM, then KILL, to the whole
// group. It returns when the process is reaped and its stderr read.
func (c *child) end() {
	timer := time.NewTimer(termAfter)
	defer timer.Stop()
	select {
	case <-c.exited:
	case <-timer.C:
		c.family.terminate()
		timer.Reset(killAfter - termAfter)
		select {
		case <-c.exited:
		case <-timer.C:
		}
	}
	c.family.kill() // always: the child may have left others behind
	<-c.exited
	c.family.release()
	// A process that left the group may hold stderr open for ever.
	_ = c.stderr.SetReadDeadline(time.Now().Add(lastWords))
	c.wg.Wait()
}

// base are the variables that every child gets.
var base = []string{
	"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "TMPDIR", "TZ",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
	"SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO",
	"XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR",
	"CLAUDE_PROJECT_DIR", // which Claude Code gives each server that it starts
}

var baseWindows = []string{
	"SystemRoot", "SystemDrive", "windir", "ComSpec", "PATHEXT", "TEMP", "TMP", "USERPROFILE", "USERNAME", "USERDOMAIN", "HOMEDRIVE",
	"HOMEPATH", "APPDATA", "LOCALAPPDATA", "ProgramData", "ProgramFiles", "ProgramFiles(x86)", "PROCESSOR_ARCHITECTURE", "NUMBER_OF_PROCESSORS", "OS",
}

// environment is exactly what a child gets: the base, what env_pass names, own, and env, which
// wins.
func environment(cfg config.Upstream, own []string, r *config.Resolver) ([]string, error) {
	names := slices.Concat(base, cfg.EnvPass)
	if runtime.GOOS == "windows" {
		names = slices.Concat(names, baseWindows)
	}
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if slices.ContainsFunc(names, func(n string) bool { return sameVariable(n, name) }) || strings.HasPrefix(name, "LC_") {
			env = append(env, e)
		}
	}
	set := func(name, value string) {
		env = slices.DeleteFunc(env, func(have string) bool {
			n, _, _ := strings.Cut(have, "=")
			return sameVariable(n, name)
		})
		env = append(env, name+"="+value)
	}
	for _, e := range own {
		name, value, _ := strings.Cut(e, "=")
		set(name, value)
	}
	for _, e := range cfg.Env {
		name, value, _ := strings.Cut(e, "=")
		v, err := r.Resolve(value)
		if err != nil {
			return nil, fmt.Errorf("env %s: %w", name, err)
		}
		set(name, v)
	}
	return env, nil
}

func sameVariable(a, b string) bool {
	if runtime.GOOS == "windows" {
		return strings.EqualFold(a, b)
	}
	return a == b
}

// Program returns the path of the program that an upstream's command starts, or
// why there is none.
func Program(cfg config.Upstream, r *config.Resolver) (string, error) {
	name, err := r.Resolve(cfg.Command)
	if err != nil {
		return "", err
	}
	if strings.ContainsRune(name, os.PathSeparator) && !filepath.IsAbs(name) && cfg.Cwd != "" {
		dir, err := r.Resolve(cfg.Cwd)
		if err != nil {
			return "", err
		}
		name = filepath.Join(dir, name) // from where it is started
	}
	path, err := find(cfg, name, r)
	if err != nil {
		return "", startError(cfg, name, err)
	}
	return filepath.Abs(path)
}

// separators are what a path has and the mere name of a program has not.
var separators = map[bool]string{false: "/", true: `:\/`}[runtime.GOOS == "windows"]

// find is where a program is. One by its name alone is looked for on the PATH that the child
// gets, as a shell does that is told one before a command; a directory there that is relative
// is passed over.
func find(cfg config.Upstream, name string, r *config.Resolver) (string, error) {
	value, set := pathOf(cfg)
	if !set || strings.ContainsAny(name, separators) {
		return exec.LookPath(name)
	}
	dirs, err := r.Resolve(value)
	if err != nil {
		return "", err
	}
	for _, dir := range filepath.SplitList(dirs) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil && filepath.IsAbs(dir) {
			return path, nil
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}

// pathOf is the PATH that env gives a child, if it does.
func pathOf(cfg config.Upstream) (value string, set bool) {
	for _, e := range cfg.Env {
		if name, v, _ := strings.Cut(e, "="); sameVariable(name, "PATH") {
			value, set = v, true
		}
	}
	return value, set
}
