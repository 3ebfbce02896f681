// Parts that several views of the operator's page are made of: tables, numbers with a line, choices.

import { put, spark } from "./ops-chart.js";
import { h, sync } from "./view.js";

/** One of several, all to be seen: `options` are [value, name]; `chosen` is told at each change. */
export function choice(label, options, current, chosen) {
  const group = h("div", { class: "choice", role: "group", "aria-label": label });
  const press = (value) => [...group.children].forEach((one) => one.setAttribute("aria-pressed", String(one.value === String(value))));
  group.append(...options.map(([value, name]) => h("button", { type: "button", value, onclick: () => { press(value); chosen(value); } }, name)));
  press(current);
  return group;
}

/** Numbers in a row, each with what it means and how it went: {key, label, value, note, values, kind, tone, href}. */
export function tiles(list, all) {
  sync(list, all.map(({ key, label, href }) => ({
    key, sign: label,
    make: () => h("li", { class: "tile card" }, h("h2", {}, href ? h("a", { href }, label) : label), h("p", { class: "value" }), h("p", { class: "small" }), h("div", { class: "run" })),
  })));
  all.forEach(({ value, note, values, kind, tone }, index) => {
    const [, number, said, run] = list.children[index].children;
    list.children[index].dataset.tone = tone ?? "";
    put(number, value);
    put(said, note ?? "");
    run.replaceChildren(spark(values, kind));
  });
}

/** A table that stays; `draw` changes only the cells that are other ones.
 *
 *  columns: [{key, name, cell: row → text or {sign, make}, by?: row → what it is sorted by, number?, wide?}]; the first
 *  one names its row. `rows` have a `key`. `kind`: `cards-below` (each row is a card on a
 *  narrow screen), with `dense` one of many short cells; or `` (always a table). */
export class Table {
  constructor(caption, columns, { sort, down = false, empty = "", kind = "cards-below" } = {}) {
    [this.columns, this.sort, this.down, this.empty, this.rows] = [columns, sort, down, empty, []];
    this.heads = columns.map((column) => h("th", { scope: "col", role: "columnheader", class: column.number && "number", "data-key": column.key },
      column.by ? h("button", { type: "button", onclick: () => this.turn(column.key) }, column.name) : h("span", {}, column.name)));
    this.body = h("tbody", { role: "rowgroup" });
    this.table = h("table", { role: "table" }, h("caption", { class: "unseen" }, caption), h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, this.heads)), this.body);
    this.nothing = h("p", { class: "small nothing" }, empty);
    this.element = h("div", { class: `table ${kind}` }, this.table, this.nothing);
    this.point();
  }

  turn(key) {
    this.down = this.sort === key ? !this.down : true;
    this.sort = key;
    this.point();
    this.draw(this.rows);
  }

  point() {
    this.columns.forEach(({ key, by }, index) => {
      if (by) this.heads[index].setAttribute("aria-sort", this.sort !== key ? "none" : this.down ? "descending" : "ascending");
    });
  }

  draw(rows) {
    this.rows = rows;
    const by = this.columns.find(({ key }) => key === this.sort)?.by;
    const sorted = by ? [...rows].sort((a, b) => compare(by(a), by(b)) * (this.down ? -1 : 1)) : rows;
    this.table.hidden = rows.length === 0;
    this.nothing.hidden = rows.length > 0 || !this.empty;
    sync(this.body, sorted.map(({ key }) => ({ key, sign: "", make: () => h("tr", { role: "row" }) })));
    sorted.forEach((row, index) => {
      const line = this.body.children[index];
      line.dataset.tone = row.tone ?? "";
      sync(line, this.columns.map(({ key, name, cell, number, wide }, place) => {
        const said = cell(row) ?? "";
        const { sign = said, make = () => said } = said;
        const kind = [number && "number", wide && "wide"].filter(Boolean).join(" ");
        return {
          key, sign: String(sign),
          make: () => h(place ? "td" : "th", { role: place ? "cell" : "rowheader", scope: place ? null : "row", class: kind || null, "data-label": name }, make()),
        };
      }));
    });
  }
}

/** Nothing comes before anything. */
function compare(a, b) {
  if (a == null || b == null) return (a != null) - (b != null);
  return a < b ? -1 : a > b ? 1 : 0;
}

export const pill = (text, tone = "calm") => ({ sign: `${text} ${tone}`, make: () => h("span", { class: `pill ${tone}` }, text) });
