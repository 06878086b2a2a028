// Charts: SVG drawn from data, each with the same in words.

import { h, s, id } from "./dom.js";
import { clip, count, dayOf, fromMicros, hourOf, micros, number, real, status, statusClass, usd } from "./format.js";

// gauge is a ring: how much of a limit is used.
export function gauge(used, limit, label) {
  const part = limit > 0 ? used / limit : 1;
  const percent = Math.floor(part * 100);
  const r = 25;
  const around = 2 * Math.PI * r;
  const kind = part >= 1 ? "full" : part >= 0.8 ? "near" : "";
  return s("svg", { class: `gauge ${kind}`, viewBox: "0 0 60 60", width: 60, height: 60, role: "img", "aria-label": label },
    s("circle", { class: "track", cx: 30, cy: 30, r }),
    part > 0 ? s("circle", { class: "used", cx: 30, cy: 30, r, "stroke-dasharray": `${Math.min(part, 1) * around} ${around}`, transform: "rotate(-90 30 30)" }) : null,
    s("text", { x: 30, y: 35, "text-anchor": "middle" }, percent > 999 ? "≫" : `${percent}%`));
}

// buckets fills the gaps between what was spent, and joins hours to days where there
// would be too many bars.
export function buckets(stats) {
  const HOUR = 3_600_000;
  const floor = (t) => Math.floor(t / HOUR) * HOUR;
  const until = floor((real(stats.until) ?? new Date()).getTime());
  const since = floor((real(stats.since) ?? new Date(until - 23 * HOUR)).getTime() + HOUR - 1);
  const spent = new Map();
  for (const b of stats.spend ?? []) {
    const at = floor(new Date(b.at).getTime());
    spent.set(at, (spent.get(at) ?? 0) + micros(b.cost_usd));
  }
  const hours = [];
  for (let t = Math.min(since, ...spent.keys()); t <= until; t += HOUR) hours.push({ at: new Date(t), micros: spent.get(t) ?? 0 });
  if (hours.length <= 72) return { list: hours, by: "hour" };
  const days = new Map();
  for (const b of hours) {
    const d = new Date(b.at.getFullYear(), b.at.getMonth(), b.at.getDate());
    const key = d.getTime();
    days.set(key, { at: d, micros: (days.get(key)?.micros ?? 0) + b.micros });
  }
  return { list: [...days.values()], by: "day" };
}

function nice(max) {
  const power = 10 ** Math.floor(Math.log10(max));
  return [1, 2, 2.5, 5, 10].map((f) => f * power).find((n) => n >= max) ?? max;
}

// spendChart shows what was spent when, as bars, and the same as a table.
export function spendChart(stats, span) {
  const { list, by } = buckets(stats);
  const total = list.reduce((sum, b) => sum + b.micros, 0);
  const most = list.reduce((a, b) => (b.micros > a.micros ? b : a), list[0]);
  const at = (b) => (by === "hour" ? `${dayOf(b.at)}, ${hourOf(b.at)}` : dayOf(b.at));
  const words = total === 0
    ? `Nothing was spent in the last ${span}.`
    : `${fromMicros(total)} spent in the last ${span}; the most in one ${by} is ${fromMicros(most.micros)}, ${at(most)}.`;
  const readout = h("p", { class: "readout", "aria-hidden": "true" });
  const rest = () => (readout.textContent = total === 0 ? "" : `most in one ${by}: ${fromMicros(most.micros)}, ${at(most)}`);
  rest();
  const holder = h("div", { class: "chart-holder" });
  const label = id("chart");

  const draw = (width) => {
    const height = 190;
    const max = nice(Math.max(most.micros, 10_000) / 1e6) * 1e6;
    const ticks = [0, 0.5, 1].map((f) => [max * f, f === 0 ? "$0" : fromMicros(Math.round(max * f)).replace(/\.00$/, "")]);
    const [top, bottom, leftEdge] = [12, 24, 16 + 7.5 * Math.max(...ticks.map(([, words]) => words.length))];
    const room = width - leftEdge;
    const y = (m) => top + (height - top - bottom) * (1 - m / max);
    const step = room / list.length;
    const bar = Math.max(1, Math.min(step * 0.68, 26));
    const svg = s("svg", { class: "chart", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": label }, s("title", { id: label }, words));
    for (const [m, words] of ticks) {
      svg.append(s("line", { class: "grid", x1: leftEdge, x2: width, y1: y(m), y2: y(m) }), s("text", { class: "tick", x: leftEdge - 10, y: y(m) + 4, "text-anchor": "end" }, words));
    }
    const every = Math.max(1, Math.ceil(list.length / Math.max(2, Math.floor(room / 84))));
    const bars = list.map((b, i) => {
      const x = leftEdge + i * step + (step - bar) / 2;
      if (i % every === 0) svg.append(s("text", { class: "tick", x: x + bar / 2, y: height - 5, "text-anchor": x + bar / 2 + 20 > width ? "end" : "middle" }, by === "hour" ? hourOf(b.at) : dayOf(b.at)));
      const tall = b.micros > 0 ? Math.max(2, y(0) - y(b.micros)) : 0;
      const rect = s("rect", { class: "bar", x, y: y(0) - tall, width: bar, height: tall, rx: Math.min(3, bar / 2) });
      svg.append(rect);
      return rect;
    });
    svg.addEventListener("pointermove", (e) => {
      const i = Math.floor((e.clientX - svg.getBoundingClientRect().left - leftEdge) / step);
      bars.forEach((b, j) => b.classList.toggle("on", i === j));
      if (list[i]) readout.textContent = `${at(list[i])}: ${fromMicros(list[i].micros)}`;
      else rest();
    });
    svg.addEventListener("pointerleave", () => {
      bars.forEach((b) => b.classList.remove("on"));
      rest();
    });
    holder.replaceChildren(svg);
  };
  let drawn = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width > 0 && width !== drawn) draw((drawn = width));
  }).observe(holder);

  const paid = list.filter((b) => b.micros > 0);
  return h("div", { class: "spend" },
    h("div", { class: "figures-line" }, h("p", { class: "big" }, fromMicros(total), h("span", { class: "unit" }, ` in the last ${span}`)), readout),
    holder,
    paid.length === 0 ? null : h("details", { class: "as-table" }, h("summary", null, "As a table"),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Spend by ${by}` },
        h("table", { class: "plain" }, h("caption", { class: "unseen" }, words),
          h("thead", null, h("tr", null, h("th", { scope: "col" }, by === "hour" ? "Hour" : "Day"), h("th", { scope: "col", class: "num" }, "Spent"))),
          h("tbody", null, paid.map((b) => h("tr", null, h("th", { scope: "row" }, at(b)), h("td", { class: "num" }, fromMicros(b.micros)))))))));
}

// verdicts is one line, divided by what became of the calls, with its legend.
export function verdicts(list) {
  const order = ["allowed", "approved", "running", "pending", "error", "denied", "cancelled", "abandoned"];
  const known = [...list].filter((v) => number(v.count) > 0).sort((a, b) => (order.indexOf(a.status) + 99) % 99 - (order.indexOf(b.status) + 99) % 99);
  const total = known.reduce((sum, v) => sum + number(v.count), 0);
  let x = 0;
  const words = known.map((v) => `${clip(v.status)} ${count(number(v.count))}`).join(", ");
  const svg = s("svg", { class: "stack", viewBox: "0 0 1000 14", preserveAspectRatio: "none", role: "img", "aria-label": `Calls by verdict: ${words}` },
    known.map((v) => {
      const width = (number(v.count) / total) * 1000;
      const rect = s("rect", { class: `fill ${statusClass(v.status)}`, x: x + 1.5, y: 0, width: Math.max(2, width - 3), height: 14 });
      x += width;
      return rect;
    }));
  return h("div", { class: "verdicts" }, svg,
    h("ul", { class: "legend" }, known.map((v) => h("li", null, h("a", { href: `#/calls?status=${encodeURIComponent(v.status)}` }, status(v.status)),
      h("span", { class: "num" }, count(number(v.count))), h("span", { class: "faint num" }, percentage(number(v.count) / total))))));
}

const percentage = (part) => (part > 0 && part < 0.001 ? "< 0.1%" : `${(part * 100).toFixed(1)}%`);

// share is a small bar of how much of the most something is; its number stands beside it.
export function share(value, most, kind = "") {
  return s("svg", { class: "share", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("rect", { class: "track", x: 0, y: 0, width: 100, height: 6 }), s("rect", { class: `part ${kind}`, x: 0, y: 0, width: most > 0 ? Math.max(value > 0 ? 1.5 : 0, (value / most) * 100) : 0, height: 6 }));
}

// limitCard is one limit with its gauge.
export function limitCard(l) {
  const money = l.limit_usd !== undefined && l.limit_usd !== null;
  const used = money ? micros(l.used_usd) : number(l.used);
  const limit = money ? micros(l.limit_usd) : number(l.limit);
  const say = money ? usd : (n) => count(number(n));
  const usedWords = say(money ? l.used_usd : l.used);
  const limitWords = say(money ? l.limit_usd : l.limit);
  const reset = real(l.resets_at);
  const kind = { __proto__: null, spend_limit: "Spend", rate_limit: "Calls" }[l.type] ?? clip(l.type, 30);
  return h("li", { class: "limit" },
    gauge(used, limit, `${usedWords} of ${limitWords} used`),
    h("div", null,
      h("p", { class: "limit-figure" }, h("strong", null, usedWords), ` of ${limitWords}`),
      h("p", { class: "limit-name" }, `${kind} per ${clip(l.per || "total", 20)}`, l.of ? [" · ", h("span", { class: "mono" }, clip(l.of, 48))] : null),
      h("p", { class: "faint" }, clip(l.rule, 48), l.shadow ? h("span", { class: "badge" }, "shadow") : null, reset && reset > Date.now() ? [" · resets ", dayOf(reset) === dayOf(new Date()) ? hourOf(reset) : `${dayOf(reset)}, ${hourOf(reset)}`] : null)));
}
