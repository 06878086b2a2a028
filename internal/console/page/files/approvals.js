// What waits for a person.

import { h, reconcile, replace, id } from "./dom.js";
import { bytes, clip, json, left, number, plural, shown, time, tool, usd } from "./format.js";
import { button, empty, fields, heading } from "./parts.js";

export const title = "Approvals";

const yaml = `policies:
  - type: require_approval
    tools: ["*/delete_*", payments/charge]
    timeout: 5m
    remember: [call, session]`;

export function mount(app) {
  const list = h("div", { class: "cards", "aria-label": "Calls that wait for you", role: "region" });
  const hint = h("p", { class: "about" });
  const nothing = h("div", { hidden: true },
    empty("Nothing waits for you",
      "A call stands here when a policy says that a person decides. It waits until you answer here, in the client, or in a terminal; whoever answers first decides. Ask for it in haldir.yaml:", yaml, "haldir.yaml"));

  const draw = () => {
    const waiting = app.approvals;
    // An answered one stays in its place for a moment, so that the next does not slip
    // under the pointer.
    const rest = [...list.children].filter((c) => !waiting.some((a) => a.id === c.dataset.key));
    for (const c of rest) leave(c);
    const kept = new Map(rest.map((c) => [c.dataset.key, c]));
    const order = [...list.children].map((c) => c.dataset.key);
    const all = [...waiting];
    for (const [key, c] of kept) all.splice(Math.min(order.indexOf(key), all.length), 0, { id: key, gone: c });
    reconcile(list, all, (a) => a.id, (a) => card(app, a), () => {});
    nothing.hidden = list.childElementCount > 0;
    list.hidden = !nothing.hidden;
    replace(hint, waiting.length === 0 ? "A person's word before a call goes through." : `${plural(waiting.length, "call")} ${waiting.length === 1 ? "waits" : "wait"} for your word. Nothing else is held up meanwhile.`);
  };
  const leave = (c) => {
    if (c.dataset.left) return;
    c.dataset.left = "1";
    c.classList.add("answered");
    for (const b of c.querySelectorAll("button, input")) b.disabled = true;
    c.querySelector(".clock")?.replaceChildren(c.dataset.answer ?? "answered elsewhere, or out of time");
    const go = () => {
      if (c.contains(document.activeElement) && document.activeElement !== document.body) nearest(c)?.focus();
      c.remove();
      draw();
    };
    setTimeout(go, 2500);
  };
  const nearest = (c) => c.nextElementSibling ?? c.previousElementSibling ?? document.querySelector("h1");

  const tick = setInterval(() => {
    for (const c of list.querySelectorAll("[data-deadline] .clock")) if (!c.closest("[data-left]")) c.textContent = left(c.closest("[data-deadline]").dataset.deadline) + " left";
  }, 1000);
  app.addEventListener("approvals", draw);
  draw();
  return {
    element: h("div", null, heading(title, hint), list, nothing),
    refresh: () => app.loadApprovals(),
    close() {
      clearInterval(tick);
      app.removeEventListener("approvals", draw);
    },
  };
}

// card is one call, with all that a person needs to decide.
function card(app, a) {
  const label = id("approval");
  const why = id("why");
  const note = h("input", { type: "text", id: id("note"), maxlength: "500", autocomplete: "off", placeholder: "Optional, kept in the record" });
  const failed = h("p", { class: "error", role: "alert", hidden: true });

  const answer = async (verb, body, words) => {
    set(true);
    failed.hidden = true;
    element.dataset.answer = words; // the stream may tell before the answer comes
    try {
      await app.api.post(`/v1/approvals/${encodeURIComponent(a.id)}/${verb}`, { ...body, note: note.value.trim() });
      app.announce(`${words}: ${a.upstream}/${a.tool}`);
      app.answered(a.id);
    } catch (e) {
      if (e.status === 404 || e.status === 409) {
        element.dataset.answer = clip(e.message, 200);
        element.querySelector(".clock").textContent = element.dataset.answer;
        app.announce(e.message);
        app.answered(a.id);
        return;
      }
      delete element.dataset.answer;
      failed.textContent = e.message;
      failed.hidden = false;
      set(false);
    }
  };
  const name = `${clip(a.upstream, 40)}/${clip(a.tool, 80)}`;
  const approve = button("Approve", () => answer("approve", { for_session: false }, "approved"), "primary", { "data-do": "approve", "aria-label": `Approve ${name}` });
  const session = a.for_session ? button("Approve for this session", () => answer("approve", { for_session: true }, "approved for this session"), "", { "data-do": "session", "aria-label": `Approve for this session: ${name} with these arguments` }) : null;
  const deny = button("Deny", () => answer("deny", {}, "denied"), "danger", { "data-do": "deny", "aria-label": `Deny ${name}` });
  const buttons = [approve, session, deny].filter(Boolean);
  const set = (off) => buttons.forEach((b) => (b.disabled = off));
  // A click that was meant for what stood here before must not decide.
  set(true);
  setTimeout(() => element.dataset.left || set(false), 500);

  const element = h("article", { class: "approval", tabindex: "-1", "data-item": true, "aria-labelledby": label, "aria-describedby": why, ...(a.waiting ? { "data-deadline": a.deadline } : {}) },
    h("header", null,
      h("h2", { id: label }, tool(a.upstream, a.tool)),
      number(a.cost_usd) > 0 ? h("span", { class: "cost" }, usd(a.cost_usd)) : null,
      h("span", { class: `clock${a.waiting ? "" : " idle"}` }, a.waiting ? left(a.deadline) + " left" : "not waiting any more")),
    h("p", { class: "why", id: why }, shown(a.reason, 600)),
    a.waiting ? null : h("p", { class: "hint" }, "The call was refused, since nobody could be asked. If you approve it, the next identical call goes through, once."),
    fields([
      ["Agent", shown(a.agent_id, 80)],
      ["Client", a.client ? shown(a.client, 80) : null],
      ["Session", h("span", { class: "mono" }, clip(a.session_id, 60))],
      ["Asked", time(a.created)],
      ["Rules", (a.rules ?? []).length ? h("span", { class: "mono" }, clip(a.rules.join(", "), 200)) : null],
    ], "fields inline"),
    args(a.arguments, a.arguments_size, a.arguments_sha256),
    h("div", { class: "answer" },
      h("div", { class: "field note-field" }, h("label", { for: note.id }, "Note"), note),
      h("div", { class: "buttons" }, buttons)),
    failed);
  return element;
}

const FIRST = 4000;

// args shows the arguments of a call in full; of long ones the beginning first.
export function args(value, size, digest) {
  const cut = typeof value === "string" && number(size) > value.length;
  const label = id("args");
  const pre = h("pre", { class: "args", tabindex: "0", role: "group", "aria-labelledby": label });
  const foot = h("p", { class: "args-foot" });
  const draw = (limit) => {
    const [code, whole] = json(value ?? null, limit);
    replace(pre, code);
    replace(foot,
      whole ? null : [h("strong", null, "Not all of it is shown. "), button(`Show all ${size ? bytes(number(size)) : ""}`, () => {
        draw(Infinity);
        pre.focus();
      }, "quiet small")],
      cut ? h("strong", null, `Only the beginning was kept, of ${bytes(number(size))}. `) : null,
      digest ? h("span", { class: "faint mono digest" }, `SHA-256 ${digest}`) : null);
  };
  draw(FIRST);
  return h("div", { class: "arguments" }, h("p", { class: "label", id: label }, "Arguments"), pre, foot);
}
