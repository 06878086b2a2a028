// The servers behind haldir, and how they are doing.

import { h } from "./dom.js";
import { clip, count, duration, number, plural, shown } from "./format.js";
import { empty, fields, heading, part, snippet } from "./parts.js";

export const title = "Upstreams";

const states = { __proto__: null, ready: ["ok", "ready"], connecting: ["run", "connecting"], down: ["no", "down"], idle: ["gone", "not started"] };

export function mount(app) {
  const list = part(() => app.api.get("/v1/proxy/upstreams"), (d) => {
    const all = d.upstreams ?? [];
    if (all.length === 0) return empty("No upstreams yet", "The MCP servers that haldir guards will be here. Name one in haldir.yaml, or take over what your client has:", "haldir init");
    return h("ul", { class: "upstreams" }, all.slice(0, 300).map(card));
  });
  return { element: h("div", null, heading(title, "The MCP servers behind haldir."), list.element), refresh: list.refresh, every: 5000 };
}

function card(u) {
  const [kind, words] = states[u.state] ?? ["gone", clip(u.state, 30)];
  const auth = u.auth ? (u.auth.ended ? ["sign-in has ended: ", shown(u.auth.ended, 200)] : u.auth.signed_in ? "signed in" : "not signed in") : null;
  const changes = number(u.pin_changes);
  const [calls, errors] = [number(u.calls), number(u.errors)];
  return h("li", { class: "upstream", "data-item": true, tabindex: "-1" },
    h("div", { class: "upstream-head" }, h("h2", null, shown(u.name, 40)), h("span", { class: `status ${kind}` }, h("span", { class: "dot", "aria-hidden": "true" }), words)),
    u.error ? h("p", { class: "error" }, shown(u.error, 500)) : null,
    fields([
      ["Server", u.server ? shown(u.server, 80) : null], ["MCP", u.era ? clip(u.era, 30) : null],
      ["Tools", [count(number(u.tools)), number(u.withheld) ? h("span", { class: "faint" }, ` (${count(number(u.withheld))} withheld)`) : null]],
      ["Calls, 24 h", [h("a", { href: `#/calls?since=24h&upstream=${encodeURIComponent(u.name)}` }, count(calls)), errors ? h("span", { class: "faint" }, ` (${plural(errors, "error")})`) : null]],
      ["Latency", u.latency_ms === null || u.latency_ms === undefined ? null : duration(number(u.latency_ms))],
      ["Sign-in", auth], ["Ended lately", number(u.ends_lately) ? plural(number(u.ends_lately), "time") : null],
      ["Address", u.url ? shown(u.url, 200) : null],
    ], "fields inline"),
    changes > 0 ? h("p", null, h("a", { href: "#/pins" }, `${plural(changes, "change")} to look at`)) : null,
    u.auth && !u.auth.signed_in && /^[a-z0-9-]+$/.test(u.name) ? snippet(`haldir upstream login ${u.name}`) : null);
}
