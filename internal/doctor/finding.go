package doctor

import (
	"fmt"
	"strings"
)

// Severity says how much a finding matters.
type Severity string

// The severities.
const (
	Fine    Severity = "ok"
	Note    Severity = "note"    // worth knowing; nothing need be done
	Warning Severity = "warning" // it works, and a person should look
	Failure Severity = "error"   // something does not work
)

// ID names a kind of finding. It stays the same from version to version.
type ID string

// The kinds. docs/doctor.md has each with its fix.
const (
	Config        ID = "config"
	ConfigBroken  ID = "config-broken"
	ConfigWarning ID = "config-warning"
	ConfigNone    ID = "config-none"
	ConfigLock    ID = "config-lock"
	ConfigMode    ID = "config-mode"
	ReloadPending ID = "reload-pending"
	ReloadUnseen  ID = "reload-unseen"
	ReloadRefused ID = "reload-refused"
	ReloadWithout ID = "reload-without"
	LogFile       ID = "log-file"

	StateNone       ID = "state-none"
	StateUnusable   ID = "state-unusable"
	StateMode       ID = "state-mode"
	StateFileMode   ID = "state-file-mode"
	StateFileAccess ID = "state-file-access"
	StateOwner      ID = "state-owner"
	DiskFull        ID = "disk-full"
	DiskLow         ID = "disk-low"

	Ledger           ID = "ledger"
	LedgerBusy       ID = "ledger-busy"
	LedgerDamaged    ID = "ledger-damaged"
	LedgerNewer      ID = "ledger-newer"
	LedgerOlder      ID = "ledger-older"
	LedgerFailed     ID = "ledger-failed"
	LedgerDoubt      ID = "ledger-doubt"
	AuditChanged     ID = "audit-changed"
	AuditUnread      ID = "audit-unread"
	Clock            ID = "clock"
	Stopped          ID = "stopped"
	Leftovers        ID = "leftovers"
	CompactionLeft   ID = "compaction-left"
	ApprovalsPending ID = "approvals-pending"
	RetentionHeld    ID = "retention-held"
	SessionOver      ID = "session-over"
	SessionUnknown   ID = "session-unknown"

	Processes       ID = "processes"
	ProcessVersions ID = "process-versions"
	ProgramOthers   ID = "program-others"

	Secrets ID = "secrets"

	Upstream          ID = "upstream"
	UpstreamDown      ID = "upstream-down"
	UpstreamProgram   ID = "upstream-program"
	UpstreamReference ID = "upstream-reference"
	UpstreamAuth      ID = "upstream-auth"
	UpstreamSlow      ID = "upstream-slow"
	UpstreamEnds      ID = "upstream-ends"
	SignInEnds        ID = "sign-in-ends"
	PinsChanged       ID = "pins-changed"
	PinsDamaged       ID = "pins-damaged"
	Flagged           ID = "description-flagged"

	NameShortened   ID = "name-shortened"
	NameClash       ID = "name-clash"
	Withheld        ID = "withheld"
	SchemaSkipped   ID = "schema-skipped"
	SchemaRewritten ID = "schema-rewritten"
	DescriptionCut  ID = "description-cut"
	Context         ID = "context"
	ContextLarge    ID = "context-large"

	PatternUnmatched ID = "pattern-unmatched"
	PatternsUnknown  ID = "patterns-unknown"
	PolicyShadow     ID = "policy-shadow"
	ApprovalHook     ID = "approval-hook"

	ClientBypass       ID = "client-bypass"
	ClientUnguarded    ID = "client-unguarded"
	ClientBroken       ID = "client-broken"
	ClientProgram      ID = "client-program"
	ClientDisabled     ID = "client-disabled"
	ClientVersion      ID = "client-version"
	ClientConfigGone   ID = "client-config-gone"
	ClientConfigBroken ID = "client-config-broken"
	ClientState        ID = "client-state"
)

// Meanings says what each kind means to a person; "" where the finding itself says it.
func Meanings() map[ID]string {
	return map[ID]string{ //nolint:gosec // words, no credentials
		Config: "", Ledger: "", Upstream: "", Context: "", Processes: "",
		ConfigBroken:  "no call passes by a haldir that starts now; one that runs goes on with the rules of before",
		ConfigWarning: "it is taken as it is written, which need not be as it was meant",
		ConfigNone:    "an agent sees haldir's own tools only",
		ConfigLock:    "haldir cannot edit the file; an editor can",
		ConfigMode:    "whoever can write it can take rules away, and have haldir start any command as you",
		ReloadPending: "a haldir that ran already when it was saved goes by the rules of before",
		ReloadUnseen:  "it goes by the rules of before",
		ReloadRefused: "it goes by the rules of before",
		ReloadWithout: "none of the rules of this file is in force there",
		LogFile:       "haldir does not start",

		StateNone:       "the first call makes it",
		StateUnusable:   "every call is recorded before it is made, so none passes",
		StateMode:       "haldir does not use a state directory that is open to others, so no call passes",
		StateFileMode:   "others on this machine can read, or change, what is in it",
		StateFileAccess: "calls pass, but what haldir keeps in them is not kept, or not found",
		StateOwner:      "what this user makes there the owner may not be able to read, and the other way round",
		DiskFull:        "every call is recorded before it is made, so none passes",
		DiskLow:         "every call is recorded before it is made, so none passes once it is full",

		LedgerBusy:       "no call of any client passes until that process lets go",
		LedgerDamaged:    "no call passes; haldir does not touch the file",
		LedgerNewer:      "no call passes by this haldir, which does not know all that the file says",
		LedgerOlder:      "the next haldir that writes brings it up to date, and older versions cannot use it any more",
		LedgerFailed:     "no call passes",
		LedgerDoubt:      "what had been spent was lost in a recovery, so limits without a window count as used up",
		AuditChanged:     "somebody has changed the record outside haldir, or the disk has",
		AuditUnread:      "it is not known whether the chain is intact",
		Clock:            "no window closes and no session expires until the clock has caught up: limits that are used up stay so",
		Stopped:          "every call is refused",
		Leftovers:        "their calls count as spent; the next haldir that writes records them as abandoned",
		CompactionLeft:   "it takes up space and has records in it, also such as were pruned since; the next haldir that writes removes it",
		ApprovalsPending: "they wait until their time is over, and are refused then",
		RetentionHeld:    "records are kept as long as any config on this ledger wants, so the setting of this one deletes nothing",
		SessionOver:      "every call is refused",
		SessionUnknown:   "every call is refused",

		ProcessVersions: "the oldest decides what a file of a newer format is worth: it refuses all calls",
		ProgramOthers:   "which one a client or a shell starts depends on its PATH",

		Secrets: "what refers to them does not resolve, and upstreams that were signed in to are not",

		UpstreamDown:      "its tools are listed from memory, or not at all, and no call of them passes",
		UpstreamProgram:   "it cannot be started, so no call of its tools passes",
		UpstreamReference: "it cannot be started without, so no call of its tools passes",
		UpstreamAuth:      "no call of its tools passes",
		UpstreamSlow:      "an agent that starts now does not see its tools at first",
		UpstreamEnds:      "calls under way fail each time, and may have been carried out",
		SignInEnds:        "no call of its tools passes after that",
		PinsChanged:       "a server that changes what it tells the model may have been taken over; what has changed is held back as its pins setting says",
		PinsDamaged:       "whether the server is still as it was cannot be told, so all that it offers is withheld",
		Flagged:           "a description can give the model orders",

		NameShortened:   "the agent sees another name than the server gives; policies go by the server's",
		NameClash:       "the agent cannot reach it",
		Withheld:        "the agent cannot reach it",
		SchemaSkipped:   "Claude Code leaves the whole tool out",
		SchemaRewritten: "Claude Code shows the model another schema than the server gives",
		DescriptionCut:  "Claude Code shows the model the beginning only",
		ContextLarge:    "a client that shows all tools to the model pays that with every request",

		PatternUnmatched: "the rule does not concern what its author had in mind: often a name is misspelt",
		PatternsUnknown:  "a misspelt pattern would not be noticed",
		PolicyShadow:     "it records what it would refuse, and refuses nothing",
		ApprovalHook:     "it can allow what a person is to be asked about",

		ClientBypass:       "its calls are neither judged nor recorded",
		ClientUnguarded:    "its calls are neither judged nor recorded",
		ClientBroken:       "whether a server goes past haldir there is not known",
		ClientDisabled:     "an agent in that client has none of haldir's tools",
		ClientProgram:      "the client cannot start haldir, so it has none of the tools",
		ClientVersion:      "the oldest decides what a file of a newer format is worth: it refuses all calls",
		ClientConfigGone:   "haldir tells the client why it cannot serve, and offers no tool",
		ClientConfigBroken: "haldir tells the client why it cannot serve, and offers no tool",
		ClientState:        "every call is recorded before it is made, so none of this client's passes",
	}
}

// Fix is what mends a finding.
type Fix struct {
	Text     string   // for people; "" if there is nothing to do
	Commands []string // those in it, as a shell takes them
}

// Run is the fix of a command.
func Run(command string) Fix { return Fix{command, []string{command}} }

// Do is a fix in words, in which %s stands for each of the commands.
func Do(words string, commands ...string) Fix {
	args := make([]any, len(commands))
	for i, c := range commands {
		args[i] = c
	}
	return Fix{fmt.Sprintf(words, args...), commands}
}

// Finding is what is said of one thing.
type Finding struct {
	ID       ID       `json:"id"`
	Severity Severity `json:"severity"`
	About    string   `json:"about"` // config, state, ledger, policies, clients…, or an upstream's name
	Text     string   `json:"text"`
	Means    string   `json:"means,omitempty"`
	Fix      string   `json:"fix,omitempty"`
	Commands []string `json:"commands,omitempty"` // that the fix has, as a shell takes them

	Mend *Mend `json:"-"` // how haldir can mend it by itself; nil: it needs a person
}

// Mend is a change that is safe, local, and can be taken back.
type Mend struct {
	Does string // for people, in the infinitive
	Do   func() error
}

// New makes a finding; its meaning is that of its kind.
func New(id ID, s Severity, about string, fix Fix, format string, args ...any) Finding {
	f := Finding{ID: id, Severity: s, About: about, Text: fmt.Sprintf(format, args...), Fix: fix.Text, Commands: fix.Commands}
	if s != Fine {
		f.Means = Meanings()[id]
	}
	return f
}

// inWords is a finding that offers nothing to be run: where it would, it says other words.
func (f Finding) inWords(words string) Finding {
	if len(f.Commands) > 0 {
		f.Fix, f.Commands = words, nil
	}
	f.Mend = nil
	return f
}

// some names the first few of a list.
func some(list []string) string {
	const most = 3
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}
