// What servers have changed since they were seen first, to be accepted or not.

import { h } from "./dom.js";
import { Exact, clip, count, plural, shown, time } from "./format.js";
import { button, dialog, empty, heading, part } from "./parts.js";

export const title = "Pins";

const kinds = { __proto__: null, server: "the server itself", instructions: "its instructions", tool: "tool", prompt: "prompt", resource: "resource" };
const becomes = { __proto__: null, hold: "the pinned one is offered", block: "withheld", warn: "the new one is offered already" };

export function mount(app) {
  const list = part(() => app.api.get("/v1/pins"), (d) => {
    const all = d.pins ?? [];
    const changed = all.filter((p) => (p.changes ?? []).length > 0);
    if (changed.length === 0) {
      return empty("Everything is as it is pinned",
        all.length ? `${plural(all.length, "upstream")} offer what they offered when they were seen first. If one changes what it tells the agent, the change waits here until you accept it.`
          : "What a server offers is pinned when it is seen first. If it changes later what it tells the agent, the change waits here until you accept it.", "haldir pins list");
    }
    return changed.map((p) => upstream(app, p, () => list.refresh()));
  });
  return { element: h("div", null, heading(title, "What has changed since you trusted it."), list.element), refresh: list.refresh, every: 15_000 };
}

// How much is shown: of an upstream's changes, of a change's differences, of a text.
const CHANGES = 100;
const DIFFERENCES = 200;
const TEXT = 8000;

function upstream(app, p, again) {
  const n = p.changes.length;
  const lists = p.changes.slice(0, CHANGES).map(differences);
  const long = (v) => v !== undefined && v.length > TEXT;
  const whole = n <= CHANGES && lists.every((l) => l.length <= DIFFERENCES && !l.some((d) => long(d.old) || long(d.new)));
  // What was shown is accepted, and not what the server may have made of it since.
  const accept = async () => {
    const answer = await dialog({
      title: `Accept ${plural(n, "change")} of ${clip(p.upstream, 40)}?`, action: "Accept",
      body: [h("p", null, "From now on agents get what this server offers now:"),
        h("ul", { class: "also" }, p.changes.slice(0, 20).map((c) => h("li", null, what(c))), n > 20 ? h("li", { class: "faint" }, `and ${count(n - 20)} more`) : null),
        h("p", null, "Every running haldir takes it over.")],
    });
    if (!answer) return;
    await app.attempt(() => app.api.post(`/v1/pins/${encodeURIComponent(p.upstream)}/accept`, { digests: p.changes.map((c) => c.digest) }), `The changes of ${p.upstream} are accepted`);
    again();
  };
  return h("section", { class: "panel", "aria-label": `Changes of ${clip(p.upstream, 40)}`, tabindex: "-1", "data-item": true },
    h("div", { class: "panel-head" }, h("h2", null, shown(p.upstream, 40)), h("p", { class: "note" }, "pinned ", time(p.since, "minute")), button("Accept what is new", accept, "", { "data-do": "accept", disabled: !whole })),
    whole ? null : h("p", { class: "cut" }, "This is too much to show here, and what is not shown cannot be accepted here. Look at it, and accept it, by ", h("code", null, `haldir pins diff ${clip(p.upstream, 40)}`), "."),
    lists.map((l, i) => change(p, p.changes[i], l)),
    n > CHANGES ? h("p", { class: "faint" }, `and ${count(n - CHANGES)} more; see haldir pins diff ${clip(p.upstream, 40)}`) : null);
}

const what = (c) => h("span", null, kinds[c.kind] ?? clip(c.kind, 20), c.name ? [" ", h("span", { class: "mono" }, shown(c.name, 120))] : null);

function change(p, c, all) {
  const blocked = c.blocks && p.mode === "hold" ? ["withheld: ", shown(c.blocks, 200)] : becomes[p.mode] ?? clip(p.mode, 30);
  return h("article", { class: "change" }, h("h3", null, what(c), h("span", { class: "badge" }, blocked)),
    h("dl", { class: "diff" }, all.slice(0, DIFFERENCES).map((d) => h("div", null,
      h("dt", null, d.path ? shown(d.path, 200) : c.kind === "tool" || c.kind === "prompt" ? "all of it" : "text"),
      d.was ? h("dd", { class: "del" }, h("span", { class: "unseen" }, "before: "), h("del", null, shown(d.old, TEXT))) : null,
      d.is ? h("dd", { class: "ins" }, h("span", { class: "unseen" }, "now: "), h("ins", null, shown(d.new, TEXT))) : null))),
    all.length > DIFFERENCES ? h("p", { class: "faint" }, `and ${count(all.length - DIFFERENCES)} more; see haldir pins diff ${clip(p.upstream, 40)}`) : null,
    (p.findings ?? []).filter((f) => f.kind === c.kind && (f.name ?? "") === (c.name ?? "")).slice(0, 20).map((f) => h("p", { class: "finding" }, h("strong", null, "Look at this: "), h("span", { class: "mono" }, shown(f.path, 80)), " ", shown(f.reason, 300))));
}

// What a model reads first comes first.
const first = ["title", "description", "instructions"];
const weight = (d) => (first.includes(d.path) ? first.indexOf(d.path) : first.length);

// differences lists where a change lies, in the order of the paths, as haldir pins diff
// does, but for what a model reads first.
export function differences(c) {
  const out = [];
  const nothing = (v) => v === null || v === undefined;
  diff("", c.old, c.new, !nothing(c.old), !nothing(c.new), out);
  if (out.length === 0) out.push({ path: "", old: text(c.old), new: text(c.new), was: !nothing(c.old), is: !nothing(c.new) });
  return out.sort((a, b) => weight(a) - weight(b));
}

const isObject = (v) => v && typeof v === "object" && !Array.isArray(v) && !(v instanceof Exact);
const canonical = (v) => JSON.stringify(v, (_, x) => (isObject(x) ? Object.fromEntries(Object.keys(x).sort().map((k) => [k, x[k]])) : x));
const text = (v) => (typeof v === "string" ? v : v instanceof Exact ? v.text : v === undefined ? "" : JSON.stringify(v));
const flat = (l) => !l.some((v) => v && typeof v === "object" && !(v instanceof Exact));
const join = (path, key) => (path ? `${path}.${key}` : key);

function diff(path, a, b, was, is, out) {
  if (was && is && isObject(a) && isObject(b)) {
    for (const k of [...new Set([...Object.keys(a), ...Object.keys(b)])].sort()) diff(join(path, k), a[k], b[k], Object.hasOwn(a, k), Object.hasOwn(b, k), out);
    return;
  }
  if (was && is && Array.isArray(a) && Array.isArray(b)) {
    if (!flat(a) || !flat(b)) {
      for (let i = 0; i < Math.max(a.length, b.length); i++) diff(join(path, String(i)), a[i], b[i], i < a.length, i < b.length, out);
      return;
    }
    const before = out.length;
    const [x, y] = [new Set(a.map(canonical)), new Set(b.map(canonical))];
    for (const v of a) if (!y.has(canonical(v))) out.push({ path, old: text(v), was: true, is: false });
    for (const v of b) if (!x.has(canonical(v))) out.push({ path, new: text(v), was: false, is: true });
    if (out.length === before && canonical(a) !== canonical(b)) out.push({ path, old: text(a), new: text(b), was: true, is: true });
    return;
  }
  if (was === is && canonical(a) === canonical(b)) return;
  out.push({ path, old: text(a), new: text(b), was, is });
}
