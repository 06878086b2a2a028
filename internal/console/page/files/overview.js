// What happens now, and how the day went.

import { h, reconcile, replace } from "./dom.js";
import { clip, count, left, micros, number, plural, status, time, tool, usd } from "./format.js";
import { button, empty, heading, panel, part } from "./parts.js";
import { limitCard, share, spendChart, verdicts } from "./charts.js";
import { details } from "./calls.js";

export const title = "Overview";

const FEED = 18;

export function mount(app) {
  // What waits stands first.
  const waiting = h("div", { class: "waiting" });
  const drawWaiting = () => {
    const list = app.approvals;
    if (list.length === 0) return replace(waiting);
    const some = list.slice(0, 3);
    replace(waiting, h("section", { class: "panel urgent", "aria-label": "Waiting for you" },
      h("div", { class: "panel-head" }, h("h2", null, `${plural(list.length, "call")} ${list.length === 1 ? "waits" : "wait"} for you`), h("a", { class: "button primary", href: "#/approvals" }, "Look and answer")),
      h("ul", { class: "lines" }, some.map((a) => h("li", null, tool(a.upstream, a.tool), h("span", { class: "faint" }, clip(a.agent_id, 40)), number(a.cost_usd) > 0 ? h("span", { class: "num" }, usd(a.cost_usd)) : null,
        h("span", { class: "faint num" }, a.waiting ? `${left(a.deadline)} left` : "refused, can be allowed"))),
      list.length > some.length ? h("li", { class: "faint" }, `and ${count(list.length - some.length)} more`) : null)));
  };

  const top = h("div");
  const stats = part(() => app.api.get("/v1/audit/stats", { since: "24h" }), (d) => {
    replace(top, drawTools(d.by_tool ?? []));
    return drawStats(d);
  });
  const limits = part(() => app.api.get("/v1/limits"), (d) => {
    const list = [...(d.limits ?? [])].sort((a, b) => portion(b) - portion(a));
    if (list.length === 0) return empty("No limits yet", "How much of each limit is used will be here: what may be spent, and how often may be called.", `policies:\n  - {type: spend_limit, max_usd: 50.00, per: day}\n  - {type: rate_limit, max_calls: 100, window: 1h}`, "haldir.yaml");
    return [h("ul", { class: "limits" }, list.slice(0, 4).map(limitCard)), list.length > 4 ? h("p", { class: "panel-more" }, h("a", { href: "#/spend" }, `All ${count(list.length)} limits`)) : null];
  });

  // The feed.
  let paused = false;
  let feed = [];
  const list = h("ol", { class: "feed", "aria-label": "The latest calls" });
  const none = h("div", { hidden: true }, empty("No calls yet", "Calls appear here as they happen. Give an agent haldir in place of its servers:", "claude mcp add haldir -- haldir serve"));
  const pause = button("Pause", () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    pause.setAttribute("aria-pressed", String(paused));
    if (!paused) drawFeed();
  }, "quiet small", { "aria-pressed": "false" });
  const drawFeed = () => {
    if (paused) return;
    reconcile(list, feed, (e) => e.seq, (e) => item(app, e), (element, e) => {
      if (element.dataset.state === e.status) return;
      element.replaceChildren(...item(app, e).children);
      element.dataset.state = e.status;
    });
    none.hidden = feed.length > 0;
    list.hidden = feed.length === 0;
  };
  const add = (entries) => {
    const bySeq = new Map(feed.map((e) => [number(e.seq), e]));
    for (const e of entries) if (e.tool) bySeq.set(number(e.seq), e);
    feed = [...bySeq.values()].sort((a, b) => number(b.seq) - number(a.seq)).slice(0, FEED);
  };
  const load = async () => {
    try {
      add((await app.api.get("/v1/audit", { limit: FEED })).entries ?? []);
      drawFeed();
    } catch {
      // the banner says that the server is gone, and the feed goes on from the stream
    }
  };

  let due = 0;
  const onAudit = ({ detail }) => {
    add(detail);
    drawFeed();
    // Figures follow at most every 5 s, however much happens.
    due ||= setTimeout(() => {
      due = 0;
      stats.refresh();
      limits.refresh();
    }, 5000);
  };
  const tick = setInterval(() => app.approvals.length && drawWaiting(), 5000);
  app.addEventListener("audit", onAudit);
  app.addEventListener("approvals", drawWaiting);
  drawWaiting();

  return {
    element: h("div", { class: "overview" }, heading(title, "What your agents do, as it happens."), waiting, stats.element,
      h("div", { class: "columns" },
        panel("Live", [list, none], { actions: pause }),
        h("div", { class: "stacked" }, panel("Limits", limits.element), top))),
    refresh: () => Promise.all([stats.refresh(), limits.refresh(), load()]),
    close() {
      clearTimeout(due);
      clearInterval(tick);
      app.removeEventListener("audit", onAudit);
      app.removeEventListener("approvals", drawWaiting);
    },
  };
}

const portion = (l) => (l.limit_usd !== undefined && l.limit_usd !== null ? micros(l.used_usd) / micros(l.limit_usd) : number(l.used) / number(l.limit)) || 0;

function item(app, e) {
  return h("li", { "data-state": e.status },
    h("button", { type: "button", class: "row-link", "data-item": true, onclick: () => details(app, e) }, tool(e.upstream, e.tool, 60), h("span", { class: "unseen" }, `, ${clip(e.status, 24)}`)),
    status(e.status), h("span", { class: "faint who" }, clip(e.agent_id, 30)), h("span", { class: "faint when" }, time(e.timestamp)));
}

function drawStats(d) {
  const byStatus = d.by_status ?? [];
  const of = (...names) => byStatus.filter((s) => names.includes(s.status)).reduce((sum, s) => sum + number(s.count), 0);
  const total = byStatus.reduce((sum, s) => sum + number(s.count), 0);
  const figure = (words, n, href) => h("div", { class: "figure" }, h("dt", null, words), h("dd", null, href ? h("a", { href }, n) : n));
  return h("div", null,
    h("dl", { class: "figures", "aria-label": "The last 24 hours" },
      figure("Calls, 24 h", count(total), "#/calls?since=24h"),
      figure("Refused", count(of("denied")), "#/calls?status=denied&since=24h"),
      figure("Errors", count(of("error")), "#/calls?status=error&since=24h"),
      figure("Running now", count(of("running")), "#/calls?status=running")),
    total === 0 ? null : h("div", { class: "columns even" }, panel("Spend", spendChart(d, "24 hours")), panel("Verdicts", verdicts(byStatus))));
}

function drawTools(list) {
  if (list.length === 0) return null;
  const tools = [...list].sort((a, b) => number(b.calls) - number(a.calls));
  const most = number(tools[0].calls);
  return panel("Tools, 24 h", h("ul", { class: "toplist" }, tools.slice(0, 6).map((t) => h("li", null,
    h("a", { href: `#/calls?since=24h&tool=${encodeURIComponent(t.tool)}`, class: "calm" }, split(t.tool)),
    h("span", { class: "num" }, number(t.denied) ? h("span", { class: "no-text" }, `${count(number(t.denied))} refused · `) : null, count(number(t.calls))), share(number(t.calls), most)))),
  { actions: h("a", { href: "#/spend" }, "All tools") });
}

// split takes a canonical id apart.
export function split(canonical) {
  const i = String(canonical).indexOf("/");
  return i < 0 ? tool("", canonical, 80) : tool(canonical.slice(0, i), canonical.slice(i + 1), 80);
}
