// The page: signing in, the frame, the views by their routes, keys, and the stream.

import { API, Live, keepPageSecret, pageSecret } from "./api.js";
import { h, replace } from "./dom.js";
import { clip, count, plural, shown, time } from "./format.js";
import { button, dialog, field, fields, snippet } from "./parts.js";
import * as overview from "./overview.js";
import * as approvals from "./approvals.js";
import * as calls from "./calls.js";
import * as spend from "./spend.js";
import * as sessions from "./sessions.js";
import * as upstreams from "./upstreams.js";
import * as policies from "./policies.js";
import * as pins from "./pins.js";

const views = { "": overview, approvals, calls, spend, sessions, policies, upstreams, pins };
const letters = { "": "o", approvals: "a", calls: "c", spend: "s", sessions: "e", policies: "p", upstreams: "u", pins: "i" };
const $ = (name) => document.getElementById(name);

class App extends EventTarget {
  api = new API();
  live = new Live();
  approvals = [];
  stopped = null;
  pins = 0;
  #view = null;
  #route = null;
  #every = 0;
  #queue = [];
  #frame = 0;
  #told = 0; // how often the stream has told of approvals or the state
  #known = null; // ids of approvals that were told of
  #away = false;
  #keys = "";
  #keysAt = 0;

  async start() {
    this.api.addEventListener("signedout", () => this.signedOut());
    const token = takeToken();
    if (token) {
      try {
        keepPageSecret((await this.api.post("/console/login", { token })).page);
      } catch (e) {
        return this.signedOut(e.status === 0 ? "The server cannot be reached." : "This link was used already, or is too old.");
      }
    }
    if (!pageSecret()) return this.signedOut();
    try {
      this.stopped = stopOf(await this.api.get("/v1/stop"));
    } catch (e) {
      if (e.status !== 401) this.signedOut(e.message);
      return;
    }
    this.#frameUp();
    for (const name of ["audit", "approvals", "state", "link"]) this.live.addEventListener(name, (e) => this["on" + name](e.detail));
    for (const name of ["approvals", "state"]) this.live.addEventListener(name, () => this.#told++);
    this.live.addEventListener("reset", () => this.refresh()); // too much has happened to be told
    this.live.open();
    addEventListener("hashchange", () => this.route());
    addEventListener("keydown", (e) => this.key(e));
    // While nobody looks, no stream is held open: a browser has six connections to a
    // server, for all tabs together. The title goes on to tell what waits.
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) {
        this.live.close();
        return;
      }
      this.live.open();
      this.refresh();
    });
    setInterval(() => document.hidden && this.loadApprovals(), 15_000);
    this.route();
    this.loadApprovals();
    this.loadPins();
    setInterval(() => document.hidden || this.loadPins(), 30_000);
  }

  // remember keeps a choice of the person's in the browser.
  remember(name, value) {
    try {
      if (value === undefined) return localStorage.getItem("haldir-" + name);
      localStorage.setItem("haldir-" + name, value);
    } catch {
      // storage is forbidden: it is asked anew
    }
    return null;
  }

  go(hash, { replace: instead } = {}) {
    if (!instead) {
      location.hash = hash;
      return;
    }
    history.replaceState(null, "", hash);
    this.route(true);
  }

  toTop(element) {
    if (element.getBoundingClientRect().top < 0) element.scrollIntoView({ block: "start" });
  }

  // announce tells those who hear the page; notify those who see it too.
  announce(words) {
    $("polite").textContent = "";
    requestAnimationFrame(() => ($("polite").textContent = clip(words, 300)));
  }

  notify(words, kind = "") {
    this.announce(words);
    const note = h("div", { class: `notice ${kind}` }, h("p", null, shown(words, 300)), button("×", () => note.remove(), "quiet small", { "aria-label": "Close" }));
    $("notices").append(note);
    if (kind !== "bad") setTimeout(() => note.remove(), 6000);
  }

  // attempt does something and tells how it went; without words it can be seen.
  async attempt(act, words = "") {
    try {
      const answer = await act();
      if (words) this.notify(words);
      return answer ?? true;
    } catch (e) {
      if (e.status !== 401) this.notify(e.message, "bad");
      return null;
    }
  }

  // The views.

  route(keepFocus = false) {
    const [, path = "", search = ""] = location.hash.match(/^#\/([^?]*)\??(.*)$/) ?? [];
    const view = Object.hasOwn(views, path) ? views[path] : overview;
    const focus = keepFocus ? document.activeElement?.getAttribute("name") : null;
    this.#view?.close?.();
    clearInterval(this.#every);
    const first = this.#route === null;
    const moved = this.#route !== path;
    this.#route = path;
    this.#view = view.mount(this, new URLSearchParams(search));
    replace($("main"), this.#view.element);
    this.#title();
    for (const a of $("nav").querySelectorAll("a")) {
      if (a.dataset.view === path) a.setAttribute("aria-current", "page");
      else a.removeAttribute("aria-current");
    }
    this.#menu(false);
    if (focus) $("main").querySelector(`[name="${CSS.escape(focus)}"]`)?.focus();
    else if (moved && !first) {
      $("main").querySelector("h1")?.focus({ preventScroll: true });
      scrollTo(0, 0);
    }
    this.#view.refresh();
    if (this.#view.every) this.#every = setInterval(() => document.hidden || this.#away || this.#view.refresh(), this.#view.every);
  }

  refresh() {
    this.#view?.refresh();
    this.loadApprovals();
  }

  #title() {
    const n = this.approvals.length;
    const view = views[this.#route] ?? overview;
    document.title = `${n ? `(${n}) ` : ""}${view.title} · haldir console`;
  }

  // What the stream tells.

  onaudit(entry) {
    // Many calls a second are drawn together.
    this.#queue.push(entry);
    if (this.#queue.length > 2000) this.#queue.splice(0, 1000);
    this.#frame ||= setTimeout(() => {
      this.#frame = 0;
      const detail = this.#queue;
      this.#queue = [];
      this.dispatchEvent(new CustomEvent("audit", { detail }));
    }, 100);
  }

  onapprovals(detail) {
    this.approvals = detail?.approvals ?? [];
    const fresh = this.#known ? this.approvals.filter((a) => !this.#known.has(a.id)) : [];
    this.#known = new Set(this.approvals.map((a) => a.id));
    if (fresh.length === 1) this.announce(`${clip(fresh[0].agent_id, 40)} asks to call ${clip(`${fresh[0].upstream}/${fresh[0].tool}`, 80)}`);
    else if (fresh.length > 1) this.announce(`${fresh.length} more calls wait for you`);
    this.#badge("approvals", this.approvals.length, plural(this.approvals.length, "call") + " waiting");
    this.#title();
    this.dispatchEvent(new Event("approvals"));
  }

  onstate(detail) {
    const stopped = stopOf(detail);
    if (JSON.stringify(stopped) === JSON.stringify(this.stopped)) return;
    this.stopped = stopped;
    this.announce(stopped ? "Every call is refused: haldir is stopped" : "haldir lets calls through again");
    this.#banners();
  }

  onlink({ link, was }) {
    this.#away = link === "lost";
    this.#banners();
    replace($("link"), h("span", { class: `dot ${link}`, "aria-hidden": "true" }), h("span", { class: "link-words" }, link === "live" ? "live" : "offline"));
    if (link === "live" && was === "lost") {
      this.announce("Connected again");
      this.refresh();
    }
  }

  answered(id) {
    this.onapprovals({ approvals: this.approvals.filter((a) => a.id !== id) });
    this.loadApprovals();
  }

  async loadApprovals() {
    await this.#ask("/v1/approvals", (answer) => this.onapprovals(answer));
  }

  async loadPins() {
    try {
      const n = ((await this.api.get("/v1/pins")).pins ?? []).reduce((sum, p) => sum + (p.changes ?? []).length, 0);
      this.#badge("pins", n, plural(n, "change"));
    } catch {
      // the next time
    }
  }

  // The frame.

  #frameUp() {
    $("side").hidden = false;
    document.body.classList.remove("alone");
    $("skip").addEventListener("click", (e) => {
      e.preventDefault(); // the hash is the route
      $("main").focus();
    });
    replace($("nav"), h("ul", null, Object.entries(views).map(([path, v]) => h("li", null, h("a", { href: `#/${path}`, "data-view": path }, h("span", null, v.title), h("span", { class: "count", hidden: true }))))));
    $("menu").addEventListener("click", () => this.#menu($("menu").getAttribute("aria-expanded") !== "true"));
    replace($("tools"),
      button("Stop all calls", () => (this.stopped ? this.resume() : this.stop()), "stop", { id: "stop" }),
      h("div", { class: "small-tools" }, button("", () => this.theme(), "quiet small", { id: "theme" }), button("Keys", () => this.help(), "quiet small", { id: "help", "aria-label": "Keys: the keyboard shortcuts" }),
        button("Sign out", () => this.signOut(), "quiet small", { id: "sign-out" })));
    this.#themeWords();
    this.#banners();
  }

  #menu(open) {
    $("menu").setAttribute("aria-expanded", String(open));
    $("side").classList.toggle("open", open);
  }

  #badge(path, n, words) {
    const badge = $("nav").querySelector(`[data-view="${path}"] .count`);
    if (!badge) return;
    badge.hidden = n === 0;
    replace(badge, h("span", { "aria-hidden": "true" }, count(n)), h("span", { class: "unseen" }, `, ${words}`));
    if (path !== "approvals") return;
    let flag = $("menu").querySelector(".count");
    if (!flag) $("menu").append(" ", (flag = h("span", { class: "count" })));
    flag.hidden = n === 0;
    replace(flag, h("span", { "aria-hidden": "true" }, count(n)), h("span", { class: "unseen" }, words));
  }

  #banners() {
    const s = this.stopped;
    $("stop").textContent = s ? "Resume calls" : "Stop all calls";
    $("stop").classList.toggle("stopped", Boolean(s));
    replace($("banners"),
      this.#away ? h("div", { class: "banner lost", role: "status" }, h("p", null, h("strong", null, "The connection is lost. "), "What you see may be old; the page keeps trying. If ", h("code", null, "haldir console"), " has ended, start it again.")) : null,
      s ? h("div", { class: "banner stopped" },
        h("p", null, h("strong", null, "Every call is refused. "), s.reason ? [shown(s.reason, 300), " "] : null, s.at ? h("span", { class: "since" }, "since ", time(s.at)) : null),
        button("Resume calls", () => this.resume(), "")) : null);
  }

  async stop() {
    const answer = await dialog({
      title: "Stop every call?", action: "Stop all calls", danger: true,
      body: [h("p", null, "Every call of every agent is refused at once, in every process, until you resume. Calls that run already finish."),
        field("Reason", h("input", { type: "text", name: "reason", maxlength: "500", autocomplete: "off" }), { hint: "Agents and the record are told. You may leave it empty." })],
    });
    if (!answer) return;
    const state = await this.attempt(() => this.api.post("/v1/stop", { reason: answer.reason.trim() }));
    if (state) this.#readStop();
  }

  async resume() {
    const answer = await dialog({ title: "Let calls through again?", action: "Resume calls", body: h("p", null, "Every policy and limit holds as before.") });
    if (!answer) return;
    const state = await this.attempt(() => this.api.remove("/v1/stop"));
    if (state) this.#readStop();
  }

  async #readStop() {
    await this.#ask("/v1/stop", (answer) => this.onstate(answer));
  }

  // #ask asks for what the stream tells of as well. An answer that the stream has
  // overtaken is older than what is known.
  async #ask(path, take) {
    const told = this.#told;
    try {
      const answer = await this.api.get(path);
      if (told === this.#told) take(answer);
    } catch {
      // the stream brings it when it is there again
    }
  }

  // The theme: as the system has it, light, dark.

  theme() {
    const order = ["", "light", "dark"];
    const next = order[(order.indexOf(document.documentElement.dataset.theme ?? "") + 1) % 3];
    if (next) document.documentElement.dataset.theme = next;
    else delete document.documentElement.dataset.theme;
    this.remember("theme", next);
    this.#themeWords();
  }

  #themeWords() {
    const words = { "": "Auto", light: "Light", dark: "Dark" }[document.documentElement.dataset.theme ?? ""];
    replace($("theme"), words);
    $("theme").setAttribute("aria-label", `Colours: ${words}`);
  }

  // Keys. None does anything that counts by itself: at most it moves the focus to a
  // button, which Enter then presses.

  key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey || e.isComposing || document.querySelector("dialog[open]") || this.remember("keys") === "off") return;
    const typing = e.target.closest?.("input, textarea, select");
    if (e.key === "Escape") {
      if (typing) e.target.blur();
      this.#menu(false);
      return;
    }
    if (typing) return;
    const then = (act) => {
      e.preventDefault();
      act();
    };
    if (this.#keys === "g" && e.timeStamp - this.#keysAt < 1500) {
      this.#keys = "";
      const path = Object.keys(letters).find((p) => letters[p] === e.key);
      if (path !== undefined) then(() => this.go(`#/${path}`));
      return;
    }
    this.#keys = "";
    const item = document.activeElement?.closest?.("[data-item]");
    const within = (name) => item?.querySelector(`[data-do="${name}"]`);
    switch (e.key) {
      case "g":
        this.#keys = "g";
        this.#keysAt = e.timeStamp;
        return;
      case "j":
        return then(() => this.#step(1));
      case "k":
        return then(() => this.#step(-1));
      case "?":
        return then(() => this.help());
      case "/": {
        const input = $("main").querySelector("input[name=tool]");
        if (input) then(() => {
          const box = input.closest("details");
          if (box) box.open = true;
          input.focus();
        });
        else then(() => this.go("#/calls"));
        return;
      }
      case "a":
      case "s":
      case "d": {
        const target = within({ a: "approve", s: "session", d: "deny" }[e.key]) ?? (e.key === "a" ? within("accept") : null);
        if (target) then(() => target.focus());
        return;
      }
      case "t":
        return then(() => this.theme());
    }
    const own = this.#view?.keys?.[e.key];
    if (own) then(own);
  }

  #step(by) {
    const items = [...$("main").querySelectorAll("[data-item]")].filter((i) => i.offsetParent !== null);
    if (items.length === 0) return;
    const at = items.indexOf(document.activeElement?.closest?.("[data-item]"));
    const next = items[at < 0 ? (by > 0 ? 0 : items.length - 1) : Math.min(Math.max(at + by, 0), items.length - 1)];
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  }

  async help() {
    const key = (...ks) => h("span", null, ks.map((k, i) => [i ? " " : "", h("kbd", null, k)]));
    const on = this.remember("keys") !== "off";
    const box = h("input", { type: "checkbox", id: "keys-on", checked: on, onchange: (e) => this.remember("keys", e.target.checked ? "on" : "off") });
    await dialog({
      title: "Keyboard shortcuts", close: "Close", wide: true,
      body: [
        h("div", { class: "help" },
          h("section", null, h("h3", null, "Everywhere"), fields([
            [key("g", "o"), "Overview"], [key("g", "a"), "Approvals"], [key("g", "c"), "Calls"], [key("g", "s"), "Spend"], [key("g", "e"), "Sessions"],
            [key("g", "p"), "Policies"], [key("g", "u"), "Upstreams"], [key("g", "i"), "Pins"], [key("t"), "Colours: auto, light, dark"], [key("?"), "This help"],
          ], "fields keys")),
          h("section", null, h("h3", null, "In lists"), fields([[key("j"), "Next"], [key("k"), "The one before"], [key("Enter"), "Open"], [key("/"), "Search the calls"], [key("n"), "Older calls"], [key("p"), "Newer calls"]], "fields keys"),
            h("h3", null, "At a call that waits"), fields([[key("a"), "To Approve"], [key("s"), "To Approve for this session"], [key("d"), "To Deny"], [key("Enter"), "Press it"]], "fields keys"),
            h("p", { class: "hint" }, "No single key decides anything."))),
        h("div", { class: "check" }, box, h("label", { for: "keys-on" }, "Use these shortcuts")),
      ],
    });
  }

  async signOut() {
    if (!(await this.attempt(() => this.api.post("/console/logout")))) return;
    keepPageSecret(null);
    this.signedOut("You are signed out.");
  }

  // Without a session.

  signedOut(why) {
    this.live.end();
    clearInterval(this.#every);
    this.#view?.close?.();
    this.#view = null;
    $("side").hidden = true;
    document.body.classList.add("alone");
    replace($("banners"));
    for (const d of document.querySelectorAll("dialog")) d.close();
    document.title = "haldir console";
    replace($("main"), h("div", { class: "signed-out" },
      h("h1", { tabindex: "-1" }, "Open the console from a terminal"),
      why ? h("p", { class: "why", role: "alert" }, why) : null,
      h("p", null, "This page shows what your agents do, and decides for them. So it opens only by a link that is made for you and works once."),
      snippet("haldir console"),
      h("p", { class: "faint" }, "The link signs this browser in, until the console ends or the sign-in runs out.")));
  }
}

// takeToken takes the one-time token out of the address, so that neither history nor
// screen keeps it.
function takeToken() {
  const hash = location.hash.slice(1);
  if (!hash || hash.startsWith("/")) return null;
  history.replaceState(null, "", location.pathname + location.search);
  return new URLSearchParams(hash).get("token") ?? decodeURIComponent(hash.replace(/=.*/, ""));
}

function stopOf(state) {
  const s = state?.stopped;
  if (!s) return null;
  return typeof s === "object" ? { at: s.at ?? null, reason: s.reason ?? "" } : { at: state.at ?? state.since ?? null, reason: state.reason ?? "" };
}

new App().start();
