// Elements are made here and nowhere else, and every text becomes a text node: what a
// server or an agent says is never read as HTML.

// h makes an element. Props: "on…" are listeners, true and false set and leave out an
// attribute, the rest are attributes.
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

// s makes an SVG element.
export function s(tag, props, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((c) => c !== undefined && c !== null && c !== false));
  return element;
}

// replace gives an element new children.
export function replace(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((c) => c !== undefined && c !== null && c !== false));
  return element;
}

let last = 0;

// id makes an id for what another element refers to.
export const id = (name) => `${name}-${++last}`;

// reconcile makes the children of a container those of a list, by key, so that an
// element that stays keeps its focus and what was typed in it.
export function reconcile(container, list, key, make, update) {
  const old = new Map([...container.children].map((c) => [c.dataset.key, c]));
  let place = null;
  for (const item of list) {
    const k = String(key(item));
    let element = old.get(k);
    if (element) {
      old.delete(k);
      update?.(element, item);
    } else {
      element = make(item);
      element.dataset.key = k;
    }
    const next = place ? place.nextElementSibling : container.firstElementChild;
    if (next !== element) container.insertBefore(element, next);
    place = element;
  }
  for (const element of old.values()) element.remove();
}
