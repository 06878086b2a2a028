// The record: every call and every event, searched by filters and paged by cursor.

import { h, id, reconcile, replace } from "./dom.js";
import { brief, clip, count, duration, number, plural, real, shown, status, time, tool, usd, bytes } from "./format.js";
import { button, check, dialog, empty, failed, field, fields, heading, row, select, table } from "./parts.js";
import { args } from "./approvals.js";

export const title = "Calls";

const columns = [
  { name: "Time", className: "c-time" }, { name: "Tool", className: "c-tool" }, { name: "Status", className: "c-status" },
  { name: "Agent and session", className: "c-who" }, { name: "Cost", className: "num c-cost" }, { name: "Took", className: "num c-took" },
];
const spans = [["", "Any time"], ["15m", "Last 15 minutes"], ["1h", "Last hour"], ["24h", "Last 24 hours"], ["7d", "Last 7 days"], ["30d", "Last 30 days"]];
const minutes = { "15m": 15, "1h": 60, "24h": 1440, "7d": 10_080, "30d": 43_200 };
const statuses = ["", "allowed", "denied", "pending", "approved", "error", "running", "cancelled", "abandoned"];
const names = ["status", "tool", "session_id", "agent_id", "upstream", "flagged", "governance", "since"];

export function mount(app, query) {
  const now = Date.now(); // one moment for all pages of one search
  const filter = Object.fromEntries(names.map((n) => [n, query.get(n) ?? ""]));
  const params = { ...filter, since: minutes[filter.since] ? new Date(now - minutes[filter.since] * 60_000).toISOString() : filter.since, flagged: filter.flagged === "true" ? "true" : "", governance: filter.governance === "true" ? "true" : "" };
  const set = Object.values(filter).filter(Boolean).length;

  const form = filters(filter, set, (next) => {
    const q = new URLSearchParams(Object.entries(next).filter(([, v]) => v));
    app.go(`#/calls${q.size ? "?" + q : ""}`, { replace: true });
  });

  let size = Number(app.remember("page-size") ?? 50);
  let cursors = [""]; // of the pages up to this one
  let entries = [];
  let next = null;
  let fresh = new Set();
  let loading = null;

  const where = h("p", { class: "where", role: "status" });
  const body = h("div", { class: "results" }, h("p", { class: "loading" }, "Loading…"));
  const newer = button("Newer", () => turn(-1), "", { "data-page": "newer" });
  const older = button("Older", () => turn(1), "", { "data-page": "older" });
  const newest = button("Newest", () => { cursors = [""]; load(true); }, "quiet", { "data-page": "newest" });
  const newsButton = button("", () => { cursors = [""]; load(true); }, "news", { hidden: true });
  const sizes = select([["50", "50 a page"], ["100", "100 a page"], ["200", "200 a page"]], String(size), { "aria-label": "Rows a page", onchange: (e) => {
    size = Number(e.target.value);
    app.remember("page-size", String(size));
    cursors = [""];
    load(true);
  } });

  const turn = (by) => {
    if (loading) return;
    if (by > 0 && next) cursors.push(next);
    else if (by < 0 && cursors.length > 1) cursors.pop();
    else return;
    load(true);
  };

  const load = async (moved) => {
    loading?.abort();
    const mine = (loading = new AbortController());
    body.setAttribute("aria-busy", "true");
    try {
      let cursor = cursors.at(-1);
      let found = [];
      let after = null;
      // A search does a bounded part of the work at a time, and may find nothing in it.
      do {
        const answer = await app.api.get("/v1/audit", { ...params, limit: size, cursor }, mine.signal);
        found = answer.entries ?? [];
        after = answer.next_cursor ?? null;
        cursor = after;
      } while (found.length === 0 && after);
      [entries, next] = [found, after];
      draw();
      if (moved) app.toTop(where);
    } catch (e) {
      if (e.name === "AbortError" || e.status === 401) return;
      replace(body, failed(e, () => load()));
    } finally {
      if (loading === mine) loading = null;
      body.removeAttribute("aria-busy");
    }
  };

  let built = null;
  const draw = () => {
    fresh = new Set();
    news();
    const page = cursors.length;
    newer.disabled = newest.disabled = page === 1;
    older.disabled = !next;
    body.dataset.page = page;
    if (entries.length === 0) {
      built = null;
      where.textContent = set ? "Nothing was found" : "No calls yet";
      replace(body, set
        ? empty("Nothing like that is on record", "No call fits all of these filters. Take one away, or look further back.")
        : empty("No calls yet", "Every attempt of an agent to use a tool will be here, with what became of it and why. Connect an agent, or try a call yourself:", "haldir call everything__echo --args '{\"message\":\"hello\"}'"));
      return;
    }
    const first = real(entries.at(-1).timestamp);
    replace(where, page === 1 && !next ? plural(entries.length, "record") : `Page ${count(page)}`, first ? [" · back to ", time(first, "auto")] : null);
    if (!built) {
      built = h("tbody", { role: "rowgroup" });
      const t = table("Calls and events, the newest first", columns, [], { className: "calls" });
      t.tBodies[0].replaceWith(built);
      replace(body, t);
    }
    reconcile(built, entries, (e) => e.seq, (e) => line(app, e), (element, e) => {
      if (element.dataset.state === stateOf(e)) return;
      element.replaceChildren(...line(app, e).children);
      element.dataset.state = stateOf(e);
    });
  };

  const fits = (e) => (!filter.status || e.status === filter.status) && (!filter.agent_id || e.agent_id === filter.agent_id) && (!filter.session_id || e.session_id === filter.session_id) &&
    (!filter.upstream || e.upstream === filter.upstream) && (!filter.tool || e.tool === filter.tool || `${e.upstream}/${e.tool}` === filter.tool) && (filter.flagged !== "true" || e.flagged) &&
    (e.kind !== "governance" || filter.governance === "true");
  const news = () => {
    newsButton.hidden = fresh.size === 0;
    newsButton.textContent = fresh.size > 999 ? "More than 999 new · show" : `${count(fresh.size)} new · show`;
  };
  const onAudit = ({ detail: list }) => {
    let changed = false;
    const top = number(entries[0]?.seq);
    for (const e of list) {
      const i = entries.findIndex((x) => x.seq === e.seq);
      if (i >= 0) {
        entries[i] = e; // its outcome has come
        changed = true;
      } else if (number(e.seq) > top && cursors.length === 1 && fits(e) && fresh.size < 1000) fresh.add(e.seq);
    }
    if (changed && built) {
      const kept = fresh;
      draw();
      fresh = kept;
    }
    // An empty list need not be asked to be filled.
    if (entries.length === 0 && fresh.size > 0 && !loading) load();
    else news();
  };
  app.addEventListener("audit", onAudit);

  const exportTo = (format) => {
    const q = new URLSearchParams({ format, ...Object.fromEntries(Object.entries(params).filter(([, v]) => v)) });
    return h("a", { class: "button quiet", href: `/v1/audit/export?${q}`, download: `haldir-audit.${format}` }, format === "jsonl" ? "JSON lines" : "CSV");
  };
  const result = h("div", { class: "verify-result", role: "status" });
  const verify = button("Verify the record", async () => {
    verify.disabled = true;
    replace(result, h("p", { class: "checking" }, "Reading the whole chain…"));
    try {
      replace(result, verdict(await app.api.get("/v1/audit/verify")));
    } catch (e) {
      replace(result, failed(e));
    } finally {
      verify.disabled = false;
    }
  }, "", { id: "verify" });

  return {
    element: h("div", null,
      heading(title, "Every attempt, on record before it is forwarded.", verify, h("span", { class: "exports" }, h("span", { class: "faint" }, "Export"), exportTo("jsonl"), exportTo("csv"))),
      result, form,
      h("div", { class: "bar" }, where, newsButton, h("div", { class: "pager" }, sizes, newest, newer, older)),
      body,
      h("div", { class: "bar end" }, h("div", { class: "pager" }, button("Newer", () => turn(-1), "", { class: "again-newer" }), button("Older", () => turn(1), "")))),
    refresh: () => load(),
    keys: { n: () => turn(1), p: () => turn(-1) },
    close() {
      loading?.abort();
      app.removeEventListener("audit", onAudit);
    },
  };
}

const stateOf = (e) => `${e.status} ${e.outcome_seq ?? ""}`;

function line(app, e) {
  const at = time(e.timestamp);
  const open = h("button", { type: "button", class: "row-link", "data-item": true, onclick: () => details(app, e),
    "aria-label": `${at.textContent}, record ${e.seq}: ${clip(e.tool ? `${e.upstream}/${e.tool}` : e.kind, 90)}, ${clip(e.status, 24)}` }, at);
  const what = e.tool ? tool(e.upstream, e.tool, 90) : h("span", { class: "event" }, clip(e.kind, 30), e.upstream ? [" · ", clip(e.upstream, 40)] : null);
  return row(columns, [
    open,
    [what, e.flag_reason ? h("p", { class: "reason" }, shown(e.flag_reason, 160)) : null],
    status(e.status),
    e.agent_id || e.session_id ? [shown(e.agent_id, 40), e.session_id ? brief(e.session_id) : null] : null,
    number(e.cost_usd) > 0 ? usd(e.cost_usd) : null,
    e.duration_ms === undefined ? null : duration(number(e.duration_ms)),
  ], { "data-seq": String(e.seq), "data-state": stateOf(e) });
}

// details shows all that is on record of a call.
export function details(app, e) {
  const mono = (v) => (v ? h("span", { class: "mono wrap" }, clip(v, 300)) : null);
  const link = (name, value) => (value ? h("a", { href: `#/calls?${name}=${encodeURIComponent(value)}`, onclick: (ev) => ev.target.closest("dialog").close() }, clip(value, 80)) : null);
  const also = Array.isArray(e.also) && e.also.length ? h("ul", { class: "also" }, e.also.map((f) => h("li", null, h("span", { class: "mono" }, clip([f.policy, f.rule].filter(Boolean).join(" "), 80)), " ", shown(f.reason ?? "", 300), f.shadow ? h("span", { class: "faint" }, " (shadow)") : null))) : null;
  dialog({
    title: `Record ${e.seq}`, close: "Close", wide: true,
    body: h("div", { class: "record" },
      h("p", { class: "record-head" }, e.tool ? tool(e.upstream, e.tool, 300) : clip(e.kind, 60), status(e.status)),
      e.flag_reason ? h("p", { class: "why" }, shown(e.flag_reason, 2000)) : null,
      fields([
        ["When", time(e.timestamp)], ["Took", e.duration_ms === undefined ? null : duration(number(e.duration_ms))], ["Cost", usd(e.cost_usd)],
        ["Policy", e.policy ? clip(e.policy, 80) : null], ["Rule", mono(e.rule)], ["Approval", mono(e.approval)],
        ["Agent", link("agent_id", e.agent_id)], ["Session", link("session_id", e.session_id)], ["Client", e.client ? shown(e.client, 120) : null], ["Call", mono(e.call_id)],
      ]),
      also ? [h("p", { class: "label" }, "Other rules"), also] : null,
      e.arguments !== undefined ? args(e.arguments, e.arguments_size, e.arguments_sha256)
        : e.arguments_sha256 ? fields([["Arguments", `${bytes(number(e.arguments_size))}, not kept; see audit.arguments in haldir.yaml`], ["SHA-256", mono(e.arguments_sha256)]], "fields tall") : null,
      h("details", { class: "hashes" }, h("summary", null, "Hashes"), fields([["Record", mono(e.hash)], ["The one before", mono(e.prev_hash)], ["Result", mono(e.result_sha256)], ["Config", mono(e.config_sha256)]], "fields tall"))),
  });
}

function filters(filter, set, apply) {
  const text = (name, words, placeholder) => field(words, h("input", { type: "search", name, value: filter[name], placeholder, autocomplete: "off", spellcheck: "false", autocapitalize: "off" }));
  const form = h("form", { class: "filters", role: "search", "aria-label": "Filter the record" },
    field("Status", select(statuses.map((s) => [s, s || "Any status"]), filter.status, { name: "status" })),
    field("Since", select(spans, filter.since, { name: "since" })),
    text("tool", "Tool", "files/read_file"), text("upstream", "Upstream", "files"), text("agent_id", "Agent", "research-bot"), text("session_id", "Session", "ses_…"),
    h("div", { class: "filter-end" }, check("Flagged only", { name: "flagged", checked: filter.flagged === "true" }), check("haldir's own tools too", { name: "governance", checked: filter.governance === "true" }), set ? button("Clear", () => apply({}), "quiet small", { id: "clear-filters" }) : null));
  const read = () => apply(Object.fromEntries(names.map((n) => {
    const f = form.elements[n];
    return [n, f.type === "checkbox" ? (f.checked ? "true" : "") : f.value.trim()];
  })));
  form.addEventListener("submit", (e) => {
    e.preventDefault();
    read();
  });
  form.addEventListener("change", read);
  const narrow = matchMedia("(max-width: 640px)");
  return h("details", { class: "filter-box", open: !narrow.matches || set > 0 }, h("summary", { id: id("filters") }, set ? `Filters · ${set} set` : "Filters"), form);
}

function verdict(v) {
  if (v?.ok) {
    return h("p", { class: "verdict ok" }, h("span", { "aria-hidden": "true" }, "✓ "), `The record is whole: ${plural(number(v.records), "record")} in an unbroken chain`,
      v.signed !== undefined ? `, ${count(number(v.signed))} of them under a signed checkpoint.` : ".", v.head ? h("span", { class: "mono faint wrap" }, ` Head ${clip(v.head, 100)}`) : null);
  }
  const d = v?.damage;
  return h("div", { class: "verdict no" }, h("p", null, h("span", { "aria-hidden": "true" }, "✕ "), h("strong", null, "The record was damaged or tampered with.")),
    d ? fields([["Kind", clip(d.kind, 80)], ["First bad record", d.seq ? String(d.seq) : null], ["What", shown(d.detail, 600)]]) : null,
    h("p", null, "Look closer with ", h("code", null, "haldir audit verify"), "."));
}
