// What was decided about memory, the newest first, each with its reason.

import { byId, element, reconcile, show, write } from "./dom.js";
import { clock, size } from "./format.js";

const MOST = 200;
const SIGNS = { grant: "▲", recall: "▼", return: "▽", refusal: "✕", rewarm: "△", hold: "■", cap: "―", pin: "●" };

export class Decisions {
  constructor() {
    this.known = new Map();
  }

  get recalls() {
    return [...this.known.values()].filter(({ kind }) => kind === "recall");
  }

  clear() {
    this.known.clear();
    this.draw();
  }

  update(decisions) {
    for (const decision of decisions) this.known.set(decision.number, decision);
    for (const number of [...this.known.keys()].sort((a, b) => a - b).slice(0, -MOST)) this.known.delete(number);
    this.draw();
  }

  sum(counters) {
    const { granted, recalled, returned } = counters;
    show(byId("decisions-sum"), granted > 0);
    write(byId("decisions-sum"), granted ? `${size(granted)} granted, ${size(recalled)} recalled, ${size(returned)} given back` : "");
  }

  draw() {
    const newest = [...this.known.values()].sort((a, b) => b.number - a.number);
    reconcile(byId("decision-list"), newest, { key: ({ number }) => number, make: makeRow, update: updateRow });
    show(byId("decisions-empty"), newest.length === 0);
    show(byId("decision-list"), newest.length > 0);
  }
}

function makeRow() {
  const row = element("li", "decision");
  const sign = element("span", "sign");
  sign.setAttribute("aria-hidden", "true");
  row.append(element("span", "when quiet"), sign, element("span", "kind"), element("span", "amount"), element("span", "why quiet"));
  return row;
}

function updateRow(row, decision) {
  const [when, sign, kind, amount, why] = row.children;
  row.dataset.kind = decision.kind;
  write(when, clock(decision.until));
  write(sign, SIGNS[decision.kind] ?? "·");
  write(kind, decision.kind);
  write(amount, decision.size ? size(decision.size) : "");
  write(why, decision.count > 1 ? `${decision.reason} (in ${decision.count} parts)` : decision.reason);
}
