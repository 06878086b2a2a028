// What several views are made of.

import { h, id, replace } from "./dom.js";

// heading is the title of a view, with what it is about and what can be done at once.
export function heading(title, about, ...actions) {
  return h("header", { class: "head" },
    h("div", null, h("h1", { tabindex: "-1" }, title), about ? h("p", { class: "about" }, about) : null),
    actions.length ? h("div", { class: "actions" }, actions) : null);
}

// panel is a part of a view with a title of its own.
export function panel(title, body, { note, actions, className = "" } = {}) {
  const label = id("panel");
  return h("section", { class: `panel ${className}`, "aria-labelledby": label },
    h("div", { class: "panel-head" }, h("h2", { id: label }, title), note ? h("p", { class: "note" }, note) : null, actions ?? null),
    body);
}

// empty says what would be here, and what makes it.
export function empty(title, words, code, where) {
  return h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), h("p", null, words), code ? snippet(code, where) : null);
}

// snippet is a command or a piece of haldir.yaml to take along.
export function snippet(code, where = "in a terminal") {
  const button = h("button", { type: "button", class: "quiet small", "aria-label": `Copy: ${code.split("\n")[0]}` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.closest(".snippet").querySelector("code"));
      button.textContent = "Selected";
    }
  });
  return h("figure", { class: "snippet" }, h("figcaption", null, h("span", null, where), button), h("pre", null, h("code", null, code)));
}

// table makes a table whose rows become cards on a narrow screen; the roles keep it a
// table there. Columns: {name, className}; one with
// unseen has that name for those only who hear the page.
export function table(caption, columns, rows, { className = "" } = {}) {
  return h("table", { class: className, role: "table" }, h("caption", { class: "unseen" }, caption),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map((c) => h("th", { scope: "col", role: "columnheader", class: c.className }, c.unseen ? h("span", { class: "unseen" }, c.unseen) : c.name)))),
    h("tbody", { role: "rowgroup" }, rows));
}

// row is one row; the first cell is its header.
export function row(columns, cells, props) {
  return h("tr", { role: "row", ...props }, cells.map((c, i) =>
    i === 0
      ? h("th", { scope: "row", role: "rowheader", class: columns[i].className }, c)
      : h("td", { role: "cell", class: c === null ? `${columns[i].className ?? ""} nothing` : columns[i].className, "data-label": columns[i].name }, c ?? "–")));
}

// fields is a list of names and values.
export function fields(pairs, className = "fields") {
  return h("dl", { class: className }, pairs.filter(([, v]) => v !== null && v !== undefined && v !== "").map(([k, v]) => h("div", null, h("dt", null, k), h("dd", null, v))));
}

// button is a button.
export const button = (words, onclick, className = "", props = {}) => h("button", { type: "button", class: className, onclick, ...props }, words);

// dialog shows a modal dialog and answers what the person chose: the values of its
// inputs by name, or null. The browser keeps the focus in it and gives it back.
export function dialog({ title, body, action, danger, wide, close = "Cancel" }) {
  return new Promise((resolve) => {
    const label = id("dialog");
    let answer = null;
    const form = h("form", { class: "dialog-body", novalidate: true }, h("h2", { id: label, tabindex: "-1", autofocus: !action }, title), body,
      h("div", { class: "dialog-actions" },
        h("button", { type: "button", class: action ? "quiet" : "", onclick: () => box.close() }, close),
        action ? h("button", { type: "submit", class: danger ? "danger" : "primary" }, action) : null));
    const box = h("dialog", { "aria-labelledby": label, class: wide ? "wide" : "" }, form);
    form.addEventListener("submit", (e) => {
      e.preventDefault();
      answer = Object.fromEntries([...form.elements].filter((f) => f.name).map((f) => [f.name, f.type === "checkbox" ? f.checked : f.value]));
      box.close();
    });
    box.addEventListener("click", (e) => {
      if (e.target === box) box.close(); // beside it
    });
    box.addEventListener("close", () => {
      box.remove();
      resolve(answer);
    });
    document.body.append(box);
    box.showModal();
  });
}

// field is a labelled input.
export function field(label, input, { hint, className = "" } = {}) {
  input.id ||= id("field");
  return h("div", { class: `field ${className}` }, h("label", { for: input.id }, label), input, hint ? h("p", { class: "hint" }, hint) : null);
}

// check is a labelled checkbox.
export function check(label, props) {
  const box = h("input", { type: "checkbox", id: id("check"), ...props });
  return h("div", { class: "check" }, box, h("label", { for: box.id }, label));
}

// select is a choice of [value, words].
export function select(options, value, props) {
  return h("select", props, options.map(([v, words]) => h("option", { value: v, selected: v === value }, words)));
}

// failed says that a part could not be loaded, where it would be.
export function failed(problem, again) {
  return h("div", { class: "failed", role: "alert" }, h("p", null, problem.message), again ? button("Try again", again, "quiet") : null);
}

// part loads something into an element, keeps what is there while it loads anew, and
// forgets answers that were overtaken.
export function part(load, draw) {
  const element = h("div", { class: "part" }, h("p", { class: "loading" }, "Loading…"));
  let round = 0;
  let before;
  const refresh = async () => {
    const mine = ++round;
    let data;
    try {
      data = await load();
    } catch (e) {
      if (mine !== round || e.name === "AbortError" || e.status === 401) return;
      if (before !== undefined && !e.status) return; // the server is gone, as a banner says
      before = undefined;
      replace(element, failed(e, refresh));
      return;
    }
    if (mine !== round) return;
    const text = JSON.stringify(data);
    if (text === before) return; // nothing new: keep focus and selection
    replace(element, draw(data));
    before = text;
  };
  return { element, refresh };
}
