// The rules, and how often each refused.

import { h } from "./dom.js";
import { clip, count, number, shown } from "./format.js";
import { empty, heading, part, row, table } from "./parts.js";
import { share } from "./charts.js";

export const title = "Policies";

const columns = [{ name: "Policy", className: "c-tool" }, { name: "Rule", className: "c-rule" }, { name: "Refused, 24 h", className: "num c-refused" }];

export function mount(app) {
  const list = part(() => app.api.get("/v1/proxy/policies"), (d) => {
    const all = d.policies ?? [];
    if (all.length === 0) {
      return empty("No policies yet", "A call must pass every policy that applies to it. Without any, everything is allowed, and on record. Begin with what must never happen:",
        `policies:\n  - {type: deny, tools: [delete_database, drop_table]}\n  - {type: spend_limit, max_usd: 50.00, per: day}`, "haldir.yaml");
    }
    const most = Math.max(...all.map((p) => number(p.denied)));
    return table("Policies in the order of haldir.yaml", columns, all.slice(0, 500).map((p) => line(p, most)), { className: "policies" });
  });
  return { element: h("div", null, heading(title, "A call must pass every policy that applies to it."), list.element), refresh: list.refresh, every: 10_000 };
}

const narrows = (words, list) => ((list ?? []).length ? h("p", { class: "mono faint wrap" }, `${words}: ${clip(list.join(", "), 300)}`) : null);

function line(p, most) {
  const shadow = p.mode === "shadow";
  const denied = number(p.denied);
  return row(columns, [
    h("div", null, h("span", { class: "policy-type" }, clip(p.type, 40).replaceAll("_", " ")), shadow ? h("span", { class: "badge" }, "shadow") : null, h("p", { class: "mono faint" }, clip(p.id, 60))),
    h("div", null, p.rule ? h("p", null, shown(p.rule, 400)) : null, narrows("tools", p.tools), narrows("upstreams", p.upstreams), narrows("agents", p.agents), p.when ? h("p", { class: "mono wrap" }, "when ", shown(p.when, 400)) : null),
    h("div", { class: "refused" }, h("span", { class: denied ? "" : "faint" }, count(denied)), share(denied, most, "no")),
  ]);
}
