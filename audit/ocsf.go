package audit

import (
	"encoding/json"
	"strings"
	"time"
	"unicode/utf8"
)

// OCSF is an event of the Open Cybersecurity Schema Framework, version [OCSFVersion]:
// class API Activity with the profile Security Control. docs/audit-format.md has the
// mapping. It is for a SIEM, not for verification.
type OCSF struct {
	ActivityID    int           `json:"activity_id"`
	ActivityName  string        `json:"activity_name"`
	CategoryUID   int           `json:"category_uid"`
	CategoryName  string        `json:"category_name"`
	ClassUID      int           `json:"class_uid"`
	ClassName     string        `json:"class_name"`
	TypeUID       int           `json:"type_uid"`
	TypeName      string        `json:"type_name"`
	Time          int64         `json:"time"` // milliseconds since 1970
	EndTime       int64         `json:"end_time,omitempty"`
	Duration      uint64        `json:"duration,omitempty"`
	SeverityID    int           `json:"severity_id"`
	Severity      string        `json:"severity"`
	StatusID      int           `json:"status_id"`
	Status        string        `json:"status"`
	StatusCode    string        `json:"status_code"`
	StatusDetail  string        `json:"status_detail,omitempty"`
	Message       string        `json:"message"`
	ActionID      int           `json:"action_id"`
	Action        string        `json:"action"`
	DispositionID int           `json:"disposition_id"`
	Disposition   string        `json:"disposition"`
	IsAlert       bool          `json:"is_alert"`
	Policy        *ocsfPolicy   `json:"policy,omitempty"`
	Metadata      ocsfMetadata  `json:"metadata"`
	Actor         ocsfActor     `json:"actor"`
	API           ocsfAPI       `json:"api"`
	SrcEndpoint   ocsfEndpoint  `json:"src_endpoint"`
	DstEndpoint   *ocsfEndpoint `json:"dst_endpoint,omitempty"`
	Resources     []ocsfName    `json:"resources,omitempty"`
	Unmapped      ocsfUnmapped  `json:"unmapped"`
}

type ocsfPolicy struct {
	Name    string `json:"name"` // the policy's type
	UID     string `json:"uid"`  // the rule's id
	Applied bool   `json:"is_applied"`
	Desc    string `json:"desc,omitempty"`
}

type ocsfMetadata struct {
	Version      string      `json:"version"`
	Profiles     []string    `json:"profiles"`
	Product      ocsfProduct `json:"product"`
	LogName      string      `json:"log_name"`
	LogVersion   string      `json:"log_version"` // of the audit format
	UID          string      `json:"uid"`         // the record's hash
	Sequence     uint64      `json:"sequence"`
	EventCode    string      `json:"event_code"` // the record's kind
	OriginalTime string      `json:"original_time"`
	Correlation  string      `json:"correlation_uid,omitempty"`
}

type ocsfProduct struct {
	Name    string `json:"name"`
	Vendor  string `json:"vendor_name"`
	Version string `json:"version"`
}

type ocsfActor struct {
	User    *ocsfUser `json:"user,omitempty"`
	Session *ocsfUID  `json:"session,omitempty"`
	AppName string    `json:"app_name"`
}

type ocsfUser struct {
	UID    string `json:"uid"`
	Name   string `json:"name"`
	TypeID int    `json:"type_id"`
	Type   string `json:"type"`
}

type ocsfUID struct {
	UID string `json:"uid"`
}

type ocsfAPI struct {
	Operation string        `json:"operation"`
	Service   *ocsfName     `json:"service,omitempty"`
	Request   *ocsfRequest  `json:"request,omitempty"`
	Response  *ocsfResponse `json:"response,omitempty"`
}

type ocsfRequest struct {
	UID  string          `json:"uid"`
	Data json.RawMessage `json:"data,omitempty"`
}

type ocsfResponse struct {
	Error   string `json:"error"`
	Message string `json:"error_message,omitempty"`
}

type ocsfName struct {
	Name string `json:"name"`
	Type string `json:"type,omitempty"`
}

type ocsfEndpoint struct {
	Name    string `json:"name"`
	Service string `json:"svc_name,omitempty"`
}

// ocsfUnmapped is what the schema has no place for, under the names of an export.
type ocsfUnmapped struct {
	CostUSD         json.RawMessage `json:"cost_usd"`
	Ref             uint64          `json:"ref,omitempty"`
	OutcomeSeq      uint64          `json:"outcome_seq,omitempty"`
	Also            json.RawMessage `json:"also,omitempty"`
	ArgumentsSHA256 string          `json:"arguments_sha256,omitempty"`
	ArgumentsSize   uint64          `json:"arguments_size,omitempty"`
	ResultSHA256    string          `json:"result_sha256,omitempty"`
	Approval        string          `json:"approval,omitempty"`
	ConfigSHA256    string          `json:"config_sha256,omitempty"`
	PrevHash        string          `json:"prev_hash"`
	Hash            string          `json:"hash"`
	OutcomeHash     string          `json:"outcome_hash,omitempty"`
}

// OCSFVersion is the version of the schema that events are made for.
const OCSFVersion = "1.6.0"

// The numbers of the schema.
const (
	ocsfCategory = 6    // Application Activity
	ocsfClass    = 6003 // API Activity
	ocsfRead     = 2
	ocsfOther    = 99
	ocsfUnknown  = 0
)

// enumerated is a number of the schema with its caption.
type enumerated struct {
	id      int
	caption string
}

// OCSF returns e as an event; version is haldir's.
func (e *Event) OCSF(version string) OCSF {
	r := &e.Record
	own := func(text string) string { return strings.ToValidUTF8(text, "\ufffd") }
	activity := enumerated{ocsfOther, "Call tool"}
	operation := own(r.Tool)
	var resources []ocsfName
	switch {
	case r.Kind != KindAttempt && r.Kind != KindGovernance:
		activity.caption = r.Kind.String() + " " + own(string(r.Status))
		operation = r.Kind.String() + "." + own(string(r.Status))
	case strings.HasPrefix(r.Tool, "resource:"):
		activity, operation = enumerated{ocsfRead, "Read"}, "resources/read"
		resources = []ocsfName{{Name: own(strings.TrimPrefix(r.Tool, "resource:")), Type: "MCP resource"}}
	case strings.HasPrefix(r.Tool, "prompt:"):
		activity, operation = enumerated{ocsfRead, "Read"}, "prompts/get"
		resources = []ocsfName{{Name: own(strings.TrimPrefix(r.Tool, "prompt:")), Type: "MCP prompt"}}
	}
	if operation == "" { // a call that named no tool
		operation = "tools/call"
	}
	severity, status, action, disposition := e.ocsfVerdict()
	o := OCSF{
		ActivityID: activity.id, ActivityName: activity.caption, CategoryUID: ocsfCategory, CategoryName: "Application Activity",
		ClassUID: ocsfClass, ClassName: "API Activity", TypeUID: ocsfClass*100 + activity.id, TypeName: "API Activity: " + captionOf(activity),
		Time: r.Time.UnixMilli(), SeverityID: severity.id, Severity: severity.caption, StatusID: status.id, Status: status.caption, StatusCode: own(string(e.Status())),
		StatusDetail: own(e.FlagReason()), ActionID: action.id, Action: action.caption, DispositionID: disposition.id, Disposition: disposition.caption, IsAlert: e.Flagged(),
		Metadata: ocsfMetadata{
			Version: OCSFVersion, Profiles: []string{"security_control"}, Product: ocsfProduct{"haldir", "haldir", version}, LogName: "haldir audit", LogVersion: "1",
			UID: e.Hash.String(), Sequence: r.Seq, EventCode: r.Kind.String(), OriginalTime: r.Time.Format(time.RFC3339Nano), Correlation: own(r.CallID),
		},
		Actor: ocsfActor{AppName: first(own(r.Client), "haldir")}, SrcEndpoint: ocsfEndpoint{Name: first(own(r.Client), own(r.Agent), "haldir")},
		API: ocsfAPI{Operation: operation}, Resources: resources,
		Unmapped: ocsfUnmapped{
			CostUSD: usd(e.Cost()), Ref: r.Ref, Also: whole(r.Also), ArgumentsSHA256: text(r.ArgumentsSHA256), ArgumentsSize: r.ArgumentsSize,
			ResultSHA256: text(r.ResultSHA256), Approval: own(e.Approval()), ConfigSHA256: text(r.ConfigSHA256), PrevHash: r.Prev.String(), Hash: e.Hash.String(),
		},
	}
	o.Message = first(e.ID(), r.Kind.String()) + ": " + string(e.Status())
	if reason := e.FlagReason(); reason != "" {
		o.Message += ": " + reason
	}
	o.Message = own(o.Message)
	if r.Agent != "" {
		o.Actor.User = &ocsfUser{UID: own(r.Agent), Name: own(r.Agent), TypeID: ocsfOther, Type: "AI agent"}
	}
	if r.Session != "" {
		o.Actor.Session = &ocsfUID{own(r.Session)}
	}
	if r.Upstream != "" {
		o.API.Service = &ocsfName{Name: own(r.Upstream)}
		o.DstEndpoint = &ocsfEndpoint{Name: own(r.Upstream), Service: own(r.Upstream)}
	}
	if r.CallID != "" {
		o.API.Request = &ocsfRequest{UID: own(r.CallID), Data: whole(r.Arguments)}
	}
	if r.Rule != "" {
		o.Policy = &ocsfPolicy{Name: own(r.Policy), UID: own(r.Rule), Applied: true, Desc: own(r.FlagReason)}
	}
	if out := e.Outcome; out != nil {
		o.EndTime, o.Duration = out.Time.UnixMilli(), out.DurationMS
		o.Unmapped.OutcomeSeq, o.Unmapped.OutcomeHash, o.Unmapped.ResultSHA256 = out.Seq, e.OutcomeHash.String(), text(out.ResultSHA256)
		if out.Status != StatusAllowed && out.Status != StatusApproved {
			o.API.Response = &ocsfResponse{Error: own(string(out.Status)), Message: own(out.FlagReason)}
		}
	}
	return o
}

// captionOf is the schema's own word for an activity: what haldir calls one that the
// schema does not know is in activity_name.
func captionOf(a enumerated) string {
	if a.id == ocsfOther {
		return "Other"
	}
	return a.caption
}

// ocsfVerdict says how grave an event is, how it ended and what haldir did about it.
func (e *Event) ocsfVerdict() (severity, status, action, disposition enumerated) {
	severity = enumerated{1, "Informational"}
	status, action, disposition = enumerated{1, "Success"}, enumerated{1, "Allowed"}, enumerated{1, "Allowed"}
	if e.Record.Kind != KindAttempt {
		action, disposition = enumerated{3, "Observed"}, enumerated{17, "Logged"}
	}
	switch e.Status() { //nolint:exhaustive // the others have happened, and that is all
	case StatusDenied:
		status, action, disposition = enumerated{2, "Failure"}, enumerated{2, "Denied"}, enumerated{2, "Blocked"}
	case StatusError:
		severity, status = enumerated{2, "Low"}, enumerated{2, "Failure"}
	case StatusCancelled:
		status = enumerated{ocsfOther, string(StatusCancelled)}
	case StatusRunning, StatusAbandoned:
		status = enumerated{ocsfUnknown, "Unknown"}
	case StatusPending:
		status, action, disposition = enumerated{ocsfUnknown, "Unknown"}, enumerated{ocsfUnknown, "Unknown"}, enumerated{ocsfUnknown, "Unknown"}
	case StatusApproved:
		disposition = enumerated{8, "Approved"}
	}
	if e.Flagged() {
		severity = enumerated{3, "Medium"}
	}
	return severity, status, action, disposition
}

func first(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

// whole returns a JSON text, or, of what is none, the text.
func whole(raw []byte) json.RawMessage {
	switch {
	case len(raw) == 0:
		return nil
	case json.Valid(raw) && utf8.Valid(raw):
		return raw
	}
	quoted, err := json.Marshal(strings.ToValidUTF8(string(raw), "\ufffd"))
	if err != nil {
		return nil
	}
	return quoted
}
