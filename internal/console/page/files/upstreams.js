// The servers behind haldir, and how they are doing.

import { h } from "./dom.js";
import { clip, duration, number, plural, shown } from "./format.js";
import { empty, fields, heading, part, snippet } from "./parts.js";

export const title = "Upstreams";

// What the states mean to a person.
const states = { __proto__: null, ready: ["ok", "ready"], connecting: ["run", "connecting"], starting: ["run", "starting"], waiting: ["wait", "waits to try again"], failed: ["no", "down"], down: ["no", "down"], stopped: ["gone", "stopped"], idle: ["gone", "not started"], unauthorized: ["wait", "needs a sign-in"] };

export function mount(app) {
  const list = part(() => app.api.get("/v1/proxy/upstreams"), (d) => {
    const all = d.upstreams ?? [];
    if (all.length === 0) return empty("No upstreams yet", "The MCP servers that haldir guards will be here. Name one in haldir.yaml, or take over what your client has:", "haldir init");
    return h("ul", { class: "upstreams" }, all.slice(0, 300).map(card));
  });
  return { element: h("div", null, heading(title, "The MCP servers behind haldir."), list.element), refresh: list.refresh, every: 5000 };
}

function card(u) {
  const name = u.name ?? u.upstream;
  const state = u.state ?? u.health ?? u.status ?? "unknown";
  const [kind, words] = states[state] ?? ["gone", clip(state, 30)];
  const auth = u.auth && typeof u.auth === "object" ? (u.auth.ended ? "sign-in has ended" : u.auth.signed_in ? "signed in" : "not signed in") : u.auth;
  const changes = number(u.pin_changes ?? u.changes);
  return h("li", { class: "upstream", "data-item": true, tabindex: "-1" },
    h("div", { class: "upstream-head" }, h("h2", null, shown(name, 40)), h("span", { class: `status ${kind}` }, h("span", { class: "dot", "aria-hidden": "true" }), words)),
    u.error ? h("p", { class: "error" }, shown(u.error, 500)) : null,
    fields([
      ["Server", u.server ? shown(u.server, 80) : null], ["Protocol", u.protocol ?? u.era ? clip(u.protocol ?? u.era, 30) : null],
      ["Tools", u.tools === undefined ? null : [String(Array.isArray(u.tools) ? u.tools.length : number(u.tools)), number(u.withheld) ? h("span", { class: "faint" }, ` (${number(u.withheld)} withheld)`) : null]],
      ["Latency", u.latency_ms === undefined ? null : duration(number(u.latency_ms))], ["Sign-in", auth ? clip(auth, 40) : null],
      ["Address", u.url ? shown(u.url, 200) : u.command ? shown(u.command, 200) : null],
    ], "fields inline"),
    changes > 0 ? h("p", null, h("a", { href: "#/pins" }, `${plural(changes, "change")} to look at`)) : null,
    kind === "wait" && u.auth ? snippet(`haldir upstream login ${name}`) : null);
}
