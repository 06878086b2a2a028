package main_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"html"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/creack/pty"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

var record = flag.Bool("record", false, "record the terminal session of docs/recording anew")

// A recording is what was seen on a terminal: shown at a time, in seconds.
type recording struct {
	shown  []shown
	now    float64
	places *strings.Replacer // of paths of this machine
}

type shown struct {
	At   float64
	Text string
}

// The times of a recording are made up, so that it is the same whenever it is made.
const (
	keyTime   = 0.05
	lineTime  = 0.12
	pauseTime = 1.6
)

func (r *recording) show(text string, takes float64) {
	r.now += takes
	r.shown = append(r.shown, shown{r.now, text})
}

func (r *recording) typed(text string) {
	for _, c := range text {
		r.show(string(c), keyTime)
	}
	r.show("\r\n", 0.4)
}

// run types a command, runs it on a terminal of its own and shows what it writes. answer
// types what the program asks for, once it has asked.
func (r *recording) run(t *testing.T, h *mcptest.Haldir, command string, args []string, answer *regexp.Regexp) string {
	t.Helper()
	r.show("$ ", 0.3)
	r.typed(command)
	var cmd *exec.Cmd
	if args == nil {
		cmd = h.Command(strings.Fields(command)[1:]...)
	} else {
		cmd = h.Command(args...)
	}
	cmd.Env = append(cmd.Env, "TERM=xterm-256color", "NO_COLOR=1", "COLUMNS=100")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: recordingRows, Cols: recordingColumns})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	all := ""
	if answer != nil {
		m := readUntil(t, tty, answer)
		all = m[0]
		r.lines(m[0])
		_, _ = io.WriteString(tty, m[1]+"\n")
		_ = readUntil(t, tty, regexp.MustCompile(regexp.QuoteMeta(m[1])+"\r?\n")) // the terminal repeats it
		r.show("", 0.8)
		r.typed(m[1])
	}
	rest, _ := io.ReadAll(tty) // ends by an error when the other end is closed
	_ = cmd.Wait()             // a refusal has a status of its own
	r.lines(string(rest))
	r.now += pauseTime
	return all + string(rest)
}

func (r *recording) lines(text string) {
	for line := range strings.Lines(strings.ReplaceAll(r.places.Replace(text), "\r\n", "\n")) {
		r.show(strings.ReplaceAll(line, "\n", "\r\n"), lineTime)
	}
}

const (
	recordingColumns = 100
	recordingRows    = 30
)

// cast is the recording as asciinema has it (version 2).
func (r *recording) cast() string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"version": 2, "width": %d, "height": %d, "title": "haldir: an agent, its tools, and a person's word"}`+"\n", recordingColumns, recordingRows)
	for _, s := range r.shown {
		text, _ := json.Marshal(s.Text)
		fmt.Fprintf(&b, "[%.2f, \"o\", %s]\n", s.At, text)
	}
	return b.String()
}

// svg draws the recording as a picture that moves: each line appears at its time, and all
// move up when the screen is full. There is no other motion on this terminal.
func (r *recording) svg() string {
	const high, wide, margin = 18, 8.4, 14
	type line struct {
		at    float64
		parts []shown
	}
	screen := []line{{}}
	column := 0
	for _, s := range r.shown {
		for i, part := range strings.Split(s.Text, "\r\n") {
			if i > 0 {
				screen, column = append(screen, line{at: s.At}), 0
			}
			for len(part) > 0 { // longer lines go on in the next
				n := min(len([]rune(part)), recordingColumns-column)
				if n == 0 {
					screen, column = append(screen, line{at: s.At}), 0
					continue
				}
				runes := []rune(part)
				last := &screen[len(screen)-1]
				last.parts = append(last.parts, shown{s.At, string(runes[:n])})
				part, column = string(runes[n:]), column+n
			}
		}
	}
	total := r.now + 3
	var b strings.Builder
	width, height := float64(recordingColumns)*wide+2*margin, recordingRows*high+2*margin
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %d" role="img" aria-label="A recording of haldir in a terminal">`+"\n", width, height)
	fmt.Fprintf(&b, `<style>text{font:14px ui-monospace,Menlo,Consolas,monospace;fill:#d8dee9;white-space:pre}.c{fill:#88c0d0}`)
	// The screen moves up by a line each time that one is begun below its end.
	fmt.Fprint(&b, "@keyframes up{0%{transform:translateY(0)}")
	for i, l := range screen {
		if i >= recordingRows {
			fmt.Fprintf(&b, "%.2f%%{transform:translateY(-%dpx)}", l.at/total*100, (i-recordingRows+1)*high)
		}
	}
	fmt.Fprintf(&b, "100%%{transform:translateY(-%dpx)}}", max(0, len(screen)-recordingRows)*high)
	fmt.Fprintf(&b, ".s{animation:up %.1fs step-end forwards}.t{visibility:hidden}", total)
	fmt.Fprint(&b, "@media(prefers-reduced-motion:reduce){.s{animation:none}.t{visibility:visible}}</style>\n")
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" rx="8" fill="#2e3440"/><svg x="%d" y="%d" width="%.0f" height="%d"><g class="s">`+"\n", margin, margin, float64(recordingColumns)*wide, recordingRows*high)
	for i, l := range screen {
		at := 0
		for _, p := range joined(l.parts) {
			class := "t"
			if len(l.parts) > 0 && strings.HasPrefix(l.parts[0].Text, "$") {
				class = "t c"
			}
			fmt.Fprintf(&b, `<text class="%s" xml:space="preserve" x="%.1f" y="%d">%s<set attributeName="visibility" to="visible" begin="%.2fs"/></text>`+"\n",
				class, float64(at)*wide, i*high+high-4, html.EscapeString(p.Text), p.At)
			at += len([]rune(p.Text))
		}
	}
	b.WriteString("</g></svg></svg>\n")
	return b.String()
}

// joined makes one part of what comes within half a second: a word that is typed.
func joined(parts []shown) (out []shown) {
	for _, p := range parts {
		if n := len(out); n > 0 && p.At-out[n-1].At < 0.5 && !strings.HasSuffix(out[n-1].Text, " ") {
			out[n-1].Text += p.Text
			continue
		}
		out = append(out, p)
	}
	return out
}

// TestRecording plays the session of docs/recording: haldir demo, then a call that a person
// must allow. What is in the repository is what haldir says today, times and ids aside.
func TestRecording(t *testing.T) {
	h, _ := approvalConfig(t, "timeout: 1m")
	id := session(t, h)
	h.Env = append(h.Env, "HALDIR_SESSION_ID="+id)
	r := &recording{places: strings.NewReplacer(h.Config, "haldir.yaml", h.State, "state", h.Program, "haldir", h.Dir, ".")}
	r.run(t, h, "haldir demo", []string{"demo"}, nil)
	call := []string{"call", "scan_domain", "--args", `{"domain":"example.com"}`}
	written := `haldir call scan_domain --args '{"domain":"example.com"}'`
	out := r.run(t, h, written, call, nil)
	m := regexp.MustCompile(`approve (apr_\d+);`).FindStringSubmatch(strings.ReplaceAll(out, "\r\n", ""))
	if m == nil {
		t.Fatalf("nobody was to be asked: %s", out)
	}
	r.run(t, h, "haldir approvals approve "+m[1], nil, regexp.MustCompile(`type ([a-z2-7]{4}) to allow it: $`))
	if out := r.run(t, h, written, call, nil); !strings.Contains(out, "example.com") || strings.Contains(out, "blocked_by") {
		t.Fatalf("what was allowed is refused: %s", out)
	}
	r.run(t, h, "haldir audit list", nil, nil)
	r.run(t, h, "haldir audit verify", nil, nil)

	cast, svg := r.cast(), r.svg()
	const dir = "../../docs/recording/"
	if *record {
		for name, text := range map[string]string{"haldir.cast": cast, "haldir.svg": svg} {
			if err := os.WriteFile(dir+name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	kept, err := os.ReadFile(dir + "haldir.cast")
	if err != nil {
		t.Fatal(err)
	}
	if was, is := spoken(t, string(kept)), spoken(t, cast); was != is {
		t.Errorf("docs/recording shows\n%s\nhaldir says\n%s\nrecord it anew with: go test ./cmd/haldir -run TestRecording -record", was, is)
	}
	drawn, err := os.ReadFile(dir + "haldir.svg")
	if err != nil || len(drawn) > 200_000 || !strings.Contains(string(drawn), "everything went as it should") {
		t.Errorf("the picture of it: %d bytes, %v", len(drawn), err)
	}
}

// spoken is the text of a recording, without what differs each time.
func spoken(t *testing.T, cast string) string {
	t.Helper()
	var b strings.Builder
	for i, line := range strings.Split(strings.TrimSpace(cast), "\n") {
		if i == 0 {
			continue
		}
		var event []any
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		text, _ := event[2].(string)
		b.WriteString(text)
	}
	text := regexp.MustCompile(`ses_[a-z0-9]+|[0-9a-f]{64}|type [a-z2-7]{4} to allow it: [a-z2-7]{4}`).ReplaceAllString(b.String(), "*")
	text = regexp.MustCompile(`[0-9]+`).ReplaceAllString(text, "#")
	return regexp.MustCompile(`\s+`).ReplaceAllString(text, " ")
}
