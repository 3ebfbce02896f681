// Making elements. Text is always text: nothing that came from outside is ever read as HTML.

/** An element. `attributes`: `on…` are listeners, `false` and null are left out, `true` is an empty one. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === false || value == null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false && child !== ""));
  return element;
}

const SHAPES = {
  applications: "M7 3h7l5 5v13H7zM14 3v5h5M10 13h6M10 17h6",
  sections: "M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z",
  feed: "M6 16V10a6 6 0 1 1 12 0v6l2 2H4zM10 21h4",
  history: "M4 12a8 8 0 1 0 3-6.2L4 8M4 4v4h4M12 8v4l3 2",
  devices: "M3 5h13v9H3zM7 18h6M18 9h4v11h-6v-6",
  overview: "M4 19V5M4 19h16M8 15l3-4 3 2 5-6",
  agencies: "M4 20h16M5 9h14L12 4zM7 9v8M12 9v8M17 9v8M5 17h14",
  nodes: "M4 4h16v6H4zM4 14h16v6H4zM8 7h.01M8 17h.01",
  rejected: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM5.6 5.6l12.8 12.8",
  alerts: "M12 4 2.5 20h19zM12 10v4M12 17h.01",
  account: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16 16l5 5",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", SHAPES[name]);
  svg.append(path);
  return svg;
}

export const button = (text, onclick, kind) => h("button", { type: "button", class: kind, onclick }, text);

/** A state of the whole page: what is the matter, and the way on. */
export const panel = ([title, text], ...buttons) => h("section", { class: "state" }, h("h1", {}, title), h("p", {}, text), h("div", { class: "buttons" }, ...buttons));

/** The only child of `parent`: made once, it stays until another `key` is shown. */
export function place(parent, key, make) {
  if (parent.dataset.view === key) return parent.firstElementChild;
  parent.dataset.view = key;
  parent.replaceChildren(make());
  return parent.firstElementChild;
}

/** Make the children of `parent` these entries: `{key, sign, make}`. A child whose key and sign are the same stays the
 *  same element, so that focus and reading place stay where they are; one that changed is marked `fresh`. */
export function sync(parent, entries) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const before = known.size > 0;
  let place = parent.firstElementChild;
  for (const { key, sign, make } of entries) {
    let child = known.get(key);
    known.delete(key);
    if (!child || child.dataset.sign !== sign) {
      const made = make();
      made.dataset.key = key;
      made.dataset.sign = sign;
      if (before && parent.dataset.settled) made.classList.add("fresh");
      if (child) {
        const focused = child.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
        if (place === child) place = made;
        child.replaceWith(made);
        if (focused) made.querySelector(`[data-focus="${focused}"]`)?.focus();
      }
      child = made;
    }
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
  for (const gone of known.values()) gone.remove();
  parent.dataset.settled = "1";
}
