// Sessions and their end.

import { h } from "./dom.js";
import { clip, plural, real, shown, status, time, usd } from "./format.js";
import { button, check, dialog, empty, heading, part, row, select, table } from "./parts.js";

export const title = "Sessions";

const columns = [{ name: "Session", className: "c-session" }, { name: "Agent", className: "c-agent" }, { name: "Status", className: "c-status" }, { name: "Created", className: "c-created" }, { name: "Expires", className: "c-expires" }, { name: "Spent", className: "num c-spent" }, { name: "Limit", className: "num c-limit" }, { name: "", unseen: "Actions", className: "c-do" }];
const STEP = 100;

export function mount(app) {
  let which = "active";
  let most = STEP;
  let all = [];
  const draw = () => {
    const list = all.filter((s) => which === "all" || stateOf(s) === "active");
    if (list.length === 0) {
      return all.length === 0
        ? empty("No sessions yet", "A session is made at the first call of an agent, or by you, with terms of its own: what it may do, what it may spend, how long it lasts.", "haldir session create --agent research-bot --scopes read,execute --spend-limit 5 --ttl 1h")
        : empty("No session is active", "Sessions that were revoked or have expired are among all sessions, above. Make a new one:", "haldir session create --agent research-bot --ttl 1h");
    }
    return [
      table("Sessions, the newest first", columns, list.slice(0, most).map((s) => line(app, s, () => sessions.refresh())), { className: "sessions" }),
      list.length > most ? h("p", { class: "panel-more" }, button(`Show more of ${plural(list.length, "session")}`, () => {
        most += STEP;
        again();
      }, "quiet")) : null,
    ];
  };
  const holder = h("div");
  const again = () => holder.replaceChildren(...[draw()].flat().filter(Boolean));
  const sessions = part(() => app.api.get("/v1/sessions"), (d) => {
    all = d.sessions ?? [];
    again();
    return holder;
  });
  const choice = select([["active", "Active"], ["all", "All"]], which, { "aria-label": "Which sessions", onchange: (e) => {
    which = e.target.value;
    most = STEP;
    again();
  } });
  return { element: h("div", null, heading(title, "Who may call, within which terms, for how long.", choice), sessions.element), refresh: sessions.refresh, every: 15_000 };
}

const stateOf = (s) => s.status;

function line(app, s, again) {
  const state = stateOf(s);
  const name = s.session_id;
  return row(columns, [
    h("div", null, h("a", { class: "mono", href: `#/calls?session_id=${encodeURIComponent(name)}`, "data-item": true, title: "The calls of this session" }, clip(name, 40)),
      h("p", { class: "faint" }, s.all_scopes ? "all scopes" : clip((s.scopes ?? []).join(", "), 100) || "no scopes")),
    shown(s.agent_id, 60), status(state), time(s.created_at, "minute"), real(s.expires_at) ? time(s.expires_at, "minute") : h("span", { class: "faint" }, "never"), usd(s.spent),
    s.spend_limit === null || s.spend_limit === undefined ? h("span", { class: "faint" }, "none") : usd(s.spend_limit),
    state === "active" ? button("Revoke", () => revoke(app, s, name, again), "small", { "aria-label": `Revoke ${clip(name, 40)} of ${clip(s.agent_id, 40)}` }) : null,
  ]);
}

async function revoke(app, s, name, again) {
  const answer = await dialog({
    title: "Revoke this session?", action: "Revoke", danger: true,
    body: [h("p", null, h("span", { class: "mono" }, clip(name, 60)), " of ", h("strong", null, shown(s.agent_id, 60))),
      h("p", null, "New calls are refused at once, everywhere. Running calls finish, unless you cancel them too. This cannot be taken back."), check("Cancel running calls too", { name: "cancel" })],
  });
  if (!answer) return;
  await app.attempt(() => app.api.remove(`/v1/sessions/${encodeURIComponent(name)}`, answer.cancel ? { cancel: "true" } : {}), `Session ${name} is revoked`);
  again();
}
