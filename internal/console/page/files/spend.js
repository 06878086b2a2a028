// Spend and limits, and how often which tool was called.

import { h } from "./dom.js";
import { count, number, usd } from "./format.js";
import { empty, heading, panel, part, row, select, table } from "./parts.js";
import { limitCard, spendChart, verdicts } from "./charts.js";
import { split } from "./overview.js";

export const title = "Spend";

const spans = { "24h": "24 hours", "7d": "7 days", "30d": "30 days" };
const columns = [{ name: "Tool", className: "c-tool" }, { name: "Calls", className: "num" }, { name: "Refused", className: "num" }, { name: "Errors", className: "num" }, { name: "Spent", className: "num" }];

export function mount(app) {
  let span = app.remember("span") ?? "24h";
  if (!spans[span]) span = "24h";
  const stats = part(() => app.api.get("/v1/audit/stats", { since: span }), (d) => [
    panel("Over time", spendChart(d, spans[span])),
    (d.by_status ?? []).length ? panel("Verdicts", verdicts(d.by_status)) : null,
    panel("By tool", tools(d.by_tool ?? []), { note: `in the last ${spans[span]}` }),
  ].filter(Boolean));
  const limits = part(() => app.api.get("/v1/limits"), (d) => ((d.limits ?? []).length
    ? h("ul", { class: "limits wide" }, d.limits.slice(0, 200).map(limitCard))
    : empty("No limits yet", "A limit holds across all agents and processes and is never overshot. Set one in haldir.yaml:", `policies:\n  - {type: spend_limit, max_usd: 50.00, per: day}\n  - {type: rate_limit, max_calls: 100, window: 1h, per: agent}`, "haldir.yaml")));
  const refresh = () => Promise.all([stats.refresh(), limits.refresh()]);
  const choice = select(Object.entries(spans).map(([v, w]) => [v, `Last ${w}`]), span, { "aria-label": "Time span", onchange: (e) => {
    span = e.target.value;
    app.remember("span", span);
    stats.refresh();
  } });
  return { element: h("div", null, heading(title, "What was spent, and what may be.", choice), panel("Limits", limits.element), stats.element), refresh, every: 10_000 };
}

function tools(list) {
  if (list.length === 0) {
    return empty("Nothing was called", "What each tool costs is up to you; tools without a price cost nothing. Give one a price in haldir.yaml:", `costs:\n  - {tools: ["search/*"], usd: 0.004}\n  - {tools: [payments/charge], from_argument: /amount}`, "haldir.yaml");
  }
  const sorted = [...list].sort((a, b) => number(b.cost_usd) - number(a.cost_usd) || number(b.calls) - number(a.calls));
  const quiet = (n) => (number(n) ? count(number(n)) : h("span", { class: "faint" }, "–"));
  return table("Calls and spend by tool", columns, sorted.slice(0, 200).map((t) => row(columns, [
    h("a", { href: `#/calls?tool=${encodeURIComponent(t.tool)}`, "data-item": true, class: "calm" }, split(t.tool)), count(number(t.calls)), quiet(t.denied), quiet(t.errors), number(t.cost_usd) ? usd(t.cost_usd) : h("span", { class: "faint" }, "–"),
  ])));
}
