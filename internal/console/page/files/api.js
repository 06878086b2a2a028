// The server, as the page sees it.

import { parse } from "./format.js";

// Problem is an answer that is no success, in the server's words (problem+json).
export class Problem extends Error {
  constructor(status, body) {
    super(body?.detail || body?.title || (status ? `The server answered ${status}` : "The server cannot be reached"));
    this.status = status;
  }
}

// What the server gave this page when it signed in. The cookie goes to every server of
// this machine's name, whatever its port; storage belongs to this one, and all of its tabs.
const kept = "haldir-page";
let known = null; // where storage is forbidden

export function pageSecret() {
  try {
    return localStorage.getItem(kept) ?? known;
  } catch {
    return known;
  }
}

export function keepPageSecret(secret) {
  known = secret;
  try {
    if (secret === null) localStorage.removeItem(kept);
    else localStorage.setItem(kept, secret);
  } catch {
    // it holds as long as this tab does
  }
}

export class API extends EventTarget {
  // request answers the JSON of an answer, null if it has none. Signed out is an event,
  // since it concerns the whole page.
  async request(method, path, { query, body, signal } = {}) {
    const url = new URL(path, location.origin);
    for (const [k, v] of Object.entries(query ?? {})) if (v !== undefined && v !== null && v !== "" && v !== false) url.searchParams.set(k, v);
    const headers = { Accept: "application/json" };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const secret = pageSecret();
    if (secret) headers["Haldir-Page"] = secret;
    let answer;
    try {
      answer = await fetch(url, {
        method, signal, headers, credentials: "same-origin", cache: "no-store", redirect: "error",
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (e) {
      if (e.name === "AbortError") throw e;
      throw new Problem(0);
    }
    const text = await answer.text();
    let json = null;
    try {
      json = text ? parse(text) : null;
    } catch {
      if (answer.ok) throw new Problem(answer.status, { detail: "The server's answer is no JSON" });
    }
    if (answer.ok) return json;
    if (answer.status === 401) this.dispatchEvent(new Event("signedout"));
    throw new Problem(answer.status, json);
  }

  get = (path, query, signal) => this.request("GET", path, { query, signal });
  post = (path, body = {}) => this.request("POST", path, { body });
  remove = (path, query) => this.request("DELETE", path, { query });
}

// Live is the stream of what happens. It tells of: audit, approvals, state, reset (details
// as the server sends them) and link ("live", "lost").
export class Live extends EventTarget {
  #source = null;
  #timer = 0;
  #pause = 1000;
  #seq = "";
  link = "new";

  open() {
    this.close();
    // Last-Event-ID is sent by the browser when it reconnects by itself, but not by a new
    // EventSource.
    const source = new EventSource("/v1/events" + (this.#seq ? `?after=${encodeURIComponent(this.#seq)}` : ""));
    this.#source = source;
    source.addEventListener("open", () => {
      this.#pause = 1000;
      this.#tell("live");
    });
    source.addEventListener("error", () => {
      this.#tell("lost");
      if (source.readyState !== EventSource.CLOSED) return; // the browser goes on trying
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.open(), this.#pause);
      this.#pause = Math.min(this.#pause * 2, 15_000);
    });
    for (const name of ["audit", "approvals", "state", "reset"]) {
      source.addEventListener(name, (e) => {
        if (e.lastEventId) this.#seq = e.lastEventId;
        let detail;
        try {
          detail = parse(e.data);
        } catch {
          return; // half an event, before the connection broke
        }
        this.dispatchEvent(new CustomEvent(name, { detail }));
      });
    }
  }

  close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  // end closes it for good.
  end() {
    this.close();
    this.open = () => {};
  }

  #tell(link) {
    if (link === this.link) return;
    const was = this.link;
    this.link = link;
    this.dispatchEvent(new CustomEvent("link", { detail: { link, was } }));
  }
}
