// Words and numbers for people.

import { h } from "./dom.js";

// What nobody sees, or what changes how the rest is seen: controls, format characters,
// bidirectional overrides, tags, unusual spaces, lone surrogates. The variation selector
// that makes an emoji colourful may stay.
const hidden = /(?:[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]|(?! )\p{Zs})(?<!\p{Extended_Pictographic}\uFE0F)/gu;

// plain texts, which most are, need no search.
const plain = /^[\x20-\x7e]*$/;

const names = {
  __proto__: null, // a name of others must not find what every object has
  0x00: "null", 0x07: "bell", 0x08: "backspace", 0x09: "tab", 0x0a: "new line", 0x0d: "carriage return", 0x1b: "escape", 0x7f: "delete",
  0xa0: "space without break", 0xad: "soft hyphen", 0x61c: "Arabic letter mark", 0x200b: "space without width", 0x200c: "non-joiner", 0x200d: "joiner",
  0x200e: "left-to-right mark", 0x200f: "right-to-left mark", 0x2028: "line separator", 0x2029: "paragraph separator",
  0x202a: "left-to-right embedding", 0x202b: "right-to-left embedding", 0x202c: "end of direction", 0x202d: "left-to-right override", 0x202e: "right-to-left override",
  0x2066: "left-to-right isolate", 0x2067: "right-to-left isolate", 0x2068: "isolate", 0x2069: "end of isolate", 0xfeff: "byte order mark",
};

const point = (c) => "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");

function pointName(c) {
  const n = c.codePointAt(0);
  if (n >= 0xe0020 && n < 0xe007f) return `${point(c)} an unseen “${String.fromCharCode(n - 0xe0000)}”`;
  return names[n] ? `${point(c)} ${names[n]}` : point(c);
}

// visible spells out what nobody sees in a text, for attributes and labels.
export function visible(text) {
  const t = String(text ?? "");
  return plain.test(t) ? t : t.replace(hidden, (c) => `⟨${point(c)}⟩`);
}

// mark is one such character as an element.
const mark = (shown, title) => h("span", { class: "ctl", title }, shown);

// shown is a text of others as nodes, what is hidden in it marked, at most max long.
export function shown(text, max = 400, className = null) {
  let rest = String(text ?? "");
  const more = rest.length - max;
  if (more > 0) rest = rest.slice(0, max).toWellFormed?.() ?? rest.slice(0, max);
  const nodes = marked(rest);
  if (more > 0) nodes.push(h("span", { class: "more" }, `… ${count(more)} more characters`));
  return h("bdi", { class: className }, nodes);
}

function marked(text) {
  if (plain.test(text)) return [text];
  const nodes = [];
  let from = 0;
  for (const m of text.matchAll(hidden)) {
    if (m.index > from) nodes.push(text.slice(from, m.index));
    nodes.push(mark(`⟨${point(m[0])}⟩`, pointName(m[0])));
    from = m.index + m[0].length;
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes;
}

// clip is a short text for a label.
export function clip(text, max = 80) {
  const t = visible(text);
  return t.length > max ? t.slice(0, max - 1) + "…" : t;
}

// Exact is a number that a double would change; it keeps the text it came as.
export class Exact {
  constructor(text) {
    this.text = text;
  }
  toString() {
    return this.text;
  }
  toJSON() {
    return JSON.rawJSON ? JSON.rawJSON(this.text) : Number(this.text);
  }
}

// One page load's own name, which no answer can know.
const nonce = "exact " + Array.from(crypto.getRandomValues(new Uint32Array(4))).join(" ");

// parse reads JSON without changing a number: one that would look otherwise than it came
// becomes Exact, since a person decides by what is shown.
export function parse(text) {
  const kept = text.replace(/"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g, (t) => (t[0] === '"' || String(Number(t)) === t ? t : `{${JSON.stringify(nonce)}:"${t}"}`));
  if (kept === text) return JSON.parse(text);
  return JSON.parse(kept, (_, v) => (v && typeof v === "object" && Object.hasOwn(v, nonce) ? new Exact(v[nonce]) : v));
}

// number is a plain number of what may be Exact.
export const number = (v) => (v instanceof Exact ? Number(v.text) : Number(v ?? 0));

// usd is money as it was given, with at least two decimals.
export function usd(v) {
  if (v === null || v === undefined) return "–";
  const t = v instanceof Exact ? v.text : String(v);
  if (!/^-?\d+(\.\d+)?$/.test(t)) return "$" + t;
  const sign = t.startsWith("-") ? "−" : "";
  const [whole, part = ""] = t.replace("-", "").split(".");
  return `${sign}$${whole.replace(/\B(?=(\d{3})+$)/g, ",")}.${part.padEnd(2, "0")}`;
}

// micros is an amount in millionths, which add up exactly.
export const micros = (v) => Math.round(number(v) * 1e6);
export const fromMicros = (m) => usd((m / 1e6).toFixed(6).replace(/0+$/, "").replace(/\.$/, ""));

const grouped = new Intl.NumberFormat("en-US");

export const count = (n) => grouped.format(Number(n ?? 0));
export const plural = (n, one, many = one + "s") => `${count(n)} ${n === 1 ? one : many}`;

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const year = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });
const hour = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

export const hourOf = (d) => hour.format(d);
export const dayOf = (d) => day.format(d);

// real tells a time from the zero time and from none.
export function real(t) {
  const d = t ? new Date(t) : null;
  return d && !Number.isNaN(d.getTime()) && d.getUTCFullYear() > 1 ? d : null;
}

// time is a time in the reader's zone, with the exact one in UTC at hand.
export function time(t, form = "auto") {
  const d = real(t);
  if (!d) return h("span", { class: "faint" }, "–");
  const now = new Date();
  let words = clock.format(d);
  if (form === "auto" && d.toDateString() !== now.toDateString()) words = `${(d.getFullYear() === now.getFullYear() ? day : year).format(d)}, ${words}`;
  if (form === "minute") words = (d.toDateString() === now.toDateString() ? "" : (d.getFullYear() === now.getFullYear() ? day : year).format(d) + ", ") + hour.format(d);
  const utc = d.toISOString();
  return h("time", { datetime: utc, title: `${utc.slice(0, 10)} ${utc.slice(11, -1)} UTC` }, words);
}

export function duration(ms) {
  if (ms === undefined || ms === null) return "–";
  if (ms < 1000) return `${ms} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}

// left is the time until something, as a clock reads it.
export function left(t, now = Date.now()) {
  const s = Math.max(0, Math.round((new Date(t) - now) / 1000));
  if (s >= 3600) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 60)}:${String(s % 60).padStart(2, "0")}`;
}

// ago is a rough time since.
export function ago(t, now = Date.now()) {
  const s = Math.max(0, Math.round((now - new Date(t)) / 1000));
  if (s < 60) return `${s} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ago`;
  return plural(Math.floor(s / 86_400), "day") + " ago";
}

export function bytes(n) {
  if (n < 1024) return plural(n, "byte");
  if (n < 1 << 20) return `${(n / 1024).toFixed(1)} KiB`;
  return `${(n / (1 << 20)).toFixed(1)} MiB`;
}

// brief is an id that tells apart at a glance; the whole is in the title.
export function brief(text) {
  const t = clip(text, 200);
  return h("p", { class: "mono brief", title: t }, t.length > 18 ? `${t.slice(0, 8)}…${t.slice(-6)}` : t);
}

// The words for what became of a call; the class gives the colour, the sign says the
// same without colour.
const statuses = {
  __proto__: null,
  allowed: ["ok", "✓"], running: ["run", "…"], approved: ["ok", "✓"], denied: ["no", "✕"], error: ["err", "!"], pending: ["wait", "◔"],
  cancelled: ["gone", "–"], abandoned: ["gone", "?"], governance: ["gone", "·"], revoked: ["no", "✕"], expired: ["gone", "–"], active: ["ok", "✓"],
  flagged: ["err", "!"], changed: ["wait", "!"],
};

export const statusClass = (status) => statuses[status]?.[0] ?? "gone";

export function status(word) {
  const [kind, sign] = statuses[word] ?? ["gone", "·"];
  return h("span", { class: `status ${kind}` }, h("span", { "aria-hidden": "true", class: "sign" }, sign), clip(word, 24));
}

// tool is a tool's canonical id, the server's part quieter than its own name.
export function tool(upstream, name, max = 120) {
  return h("span", { class: "tool", title: clip(upstream ? `${upstream}/${name}` : name, 300) },
    upstream ? [shown(upstream, 40), "/"] : null, shown(name, max, "own"));
}

// json shows a value of an agent's: every token by itself, so that a text cannot pass
// for what stands around it, and no more than limit characters. It returns the element
// and whether that was all.
export function json(value, limit = Infinity) {
  const out = h("code", { class: "json" });
  let size = 0;
  let whole = true;
  const put = (kind, ...nodes) => {
    for (const n of nodes) size += typeof n === "string" ? n.length : n.textContent.length;
    out.append(kind ? h("span", { class: kind }, nodes) : nodes.join(""));
  };
  const text = (kind, v, depth) => {
    let t = v;
    if (t.length > limit - size) {
      t = t.slice(0, Math.max(0, limit - size));
      whole = false;
    }
    put(kind, ...quoted(t, "  ".repeat(depth)));
  };
  const walk = (v, depth) => {
    if (size > limit) {
      whole = false;
      return;
    }
    const pad = "  ".repeat(depth + 1);
    if (v === null || typeof v === "boolean") put("lit", String(v));
    else if (v instanceof Exact || typeof v === "number") put("num", String(v));
    else if (typeof v === "string") text("str", v, depth);
    else {
      const list = Array.isArray(v);
      const keys = list ? v : Object.keys(v);
      if (keys.length === 0) {
        put("", list ? "[]" : "{}");
        return;
      }
      put("", list ? "[" : "{");
      for (const [i, k] of (list ? v : keys).entries()) {
        if (size > limit) {
          whole = false;
          break;
        }
        put("", (i ? "," : "") + "\n" + pad);
        if (!list) {
          text("key", k, depth + 1);
          put("", ": ");
        }
        walk(list ? k : v[k], depth + 1);
      }
      put("", "\n" + "  ".repeat(depth) + (list ? "]" : "}"));
    }
  };
  walk(value, 0);
  return [out, whole];
}

// quoted is a JSON string; its escapes are marked, and a new line in it breaks the line
// on the screen too.
function quoted(text, pad) {
  const raw = JSON.stringify(text);
  const nodes = [];
  let from = 0;
  for (const m of raw.matchAll(/\\(?:u[0-9a-f]{4}|.)/g)) {
    if (m[0] === '\\"' || m[0] === "\\\\") continue;
    nodes.push(...marked(raw.slice(from, m.index)), mark(m[0], m[0].length > 2 ? pointName(String.fromCharCode(parseInt(m[0].slice(2), 16))) : ""));
    from = m.index + m[0].length;
    if (m[0] === "\\n" && from < raw.length - 1) nodes.push("\n" + pad);
  }
  nodes.push(...marked(raw.slice(from)));
  return nodes;
}
