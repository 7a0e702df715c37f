// Memory over time: areas on top of each other, each named where it ends.

import { KINDS, ours } from "./history.js";
import { shape, write } from "./dom.js";
import { clock, size } from "./format.js";

const HEIGHT = 230;
const NARROW = 520; // pixels
const LINE = 17; // pixels between two names
const MARGIN = { top: 18, bottom: 24, left: 60 };

export class Chart {
  constructor(box, reading, history) {
    this.box = box;
    this.reading = reading;
    this.history = history;
    this.scope = "machine";
    this.recalls = [];
    this.cursor = null; // seconds since the epoch; null: now
    new ResizeObserver(() => this.draw()).observe(box);
    box.addEventListener("pointermove", (event) => this.point(event.offsetX));
    box.addEventListener("pointerleave", () => this.move(null));
    box.addEventListener("blur", () => this.move(null));
    box.addEventListener("keydown", (event) => this.press(event));
  }

  get kinds() {
    return this.scope === "machine" ? KINDS : KINDS.filter((kind) => kind.ours);
  }

  draw() {
    const width = Math.round(this.box.clientWidth);
    const newest = this.history.newest;
    if (!width || !newest) return;
    const right = width < NARROW ? 124 : 132;
    this.plot = { left: MARGIN.left, top: MARGIN.top, width: width - MARGIN.left - right, height: HEIGHT - MARGIN.top - MARGIN.bottom, right: width };
    this.top = this.scope === "machine" ? newest.total : this.zoomed();
    const picture = shape("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" });
    picture.append(...this.areas(), ...this.grid(), ...this.times(), ...this.marks(), ...this.names(newest), ...this.hand());
    this.box.replaceChildren(picture);
    this.describe();
  }

  // The largest sum in sight, and some air above it.
  zoomed() {
    const sums = this.history.runs.flat().map((point) => ours(point.parts));
    return Math.max(...sums, 64 * 2 ** 20) * 1.12;
  }

  x(at) {
    const [from, to] = this.history.span;
    return this.plot.left + (this.plot.width * (at - from)) / (to - from);
  }

  y(bytes) {
    return this.plot.top + this.plot.height * (1 - Math.min(bytes / this.top, 1));
  }

  areas() {
    return this.kinds
      .filter((kind) => kind.id !== "free")
      .map((kind, place) => {
        const below = this.kinds.slice(0, place);
        const paths = this.history.runs.map((run) => {
          const edge = (point, kinds) => kinds.reduce((sum, { id }) => sum + point.parts[id], 0);
          const up = run.map((point) => [this.x(point.at), this.y(edge(point, [...below, kind]))]);
          const down = run.map((point) => [this.x(point.at), this.y(edge(point, below))]).reverse();
          if (run.length === 1) up.unshift([up[0][0] - 2, up[0][1]], [up[0][0] - 2, down[0][1]]);
          return `M${[...up, ...down].map(([x, y]) => `${Math.max(x, this.plot.left).toFixed(1)} ${y.toFixed(1)}`).join("L")}Z`;
        });
        return shape("path", { d: paths.join(""), class: `area ${kind.id}` });
      });
  }

  grid() {
    const { left, width } = this.plot;
    const step = 2 ** Math.ceil(Math.log2(this.top / 4.5));
    const lines = [];
    for (let bytes = 0; bytes <= this.top; bytes += step) {
      const y = Math.round(this.y(bytes)) + 0.5;
      lines.push(shape("line", { class: bytes ? "grid" : "axis", x1: left, x2: left + width, y1: y, y2: y }));
      lines.push(shape("text", { class: "tick", x: left - 8, y: y + 4, "text-anchor": "end" }, bytes ? size(bytes).replace(".0 ", " ") : "0"));
    }
    return lines;
  }

  times() {
    const [from, to] = this.history.span;
    const step = to - from > 150 ? 60 : 15;
    const labels = [];
    const every = Math.ceil((step < 60 ? 76 : 56) / ((this.plot.width * step) / (to - from))); // labels stand apart
    for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
      const x = Math.round(this.x(at)) + 0.5;
      const base = this.plot.top + this.plot.height;
      labels.push(shape("line", { class: "axis", x1: x, x2: x, y1: base, y2: base + 4 }));
      if (Math.round(at / step) % every === 0 && x > this.plot.left + 14) {
        labels.push(shape("text", { class: "tick", x, y: base + 18, "text-anchor": "middle" }, clock(at, { withSeconds: step < 60 })));
      }
    }
    return labels;
  }

  marks() {
    const [from, to] = this.history.span;
    return this.recalls
      .filter(({ at }) => at >= from && at <= to)
      .flatMap(({ at }) => {
        const x = this.x(at);
        const { top, height } = this.plot;
        return [
          shape("line", { class: "recall", x1: x, x2: x, y1: top - 4, y2: top + height }),
          shape("path", { class: "recall-head", d: `M${x - 4.5} ${top - 11}h9L${x} ${top - 3}Z` }),
        ];
      });
  }

  // The name of each area at its right end, apart from each other where areas are thin.
  names(point) {
    const { left, top, width, height } = this.plot;
    const edge = left + width;
    let sum = 0;
    const places = [];
    for (const kind of this.kinds) {
      const bytes = point.parts[kind.id];
      const middle = (this.y(sum) + this.y(sum + bytes)) / 2;
      sum += bytes;
      if (bytes || kind.always) places.push({ kind, bytes, middle, y: middle });
    }
    let floor = top + height - 3;
    for (const place of places) {
      place.y = Math.min(place.y, floor);
      floor = place.y - LINE;
    }
    let ceiling = top + 2;
    for (const place of places.toReversed()) {
      place.y = Math.max(place.y, ceiling);
      ceiling = place.y + LINE;
    }
    return places.flatMap(({ kind, bytes, middle, y }) => [
      shape("path", { class: `leader ${kind.id}`, d: `M${edge + 1} ${middle.toFixed(1)}L${edge + 9} ${y.toFixed(1)}h4` }),
      ...labels(edge + 18, this.plot.right, y + 4, kind.name, size(bytes)),
    ]);
  }

  hand() {
    if (this.cursor === null) return [];
    const x = this.x(this.cursor);
    const { top, height } = this.plot;
    return [shape("line", { class: "hand", x1: x, x2: x, y1: top, y2: top + height })];
  }

  describe() {
    const point = this.at(this.cursor) ?? this.history.newest;
    const parts = this.kinds.filter((kind) => point.parts[kind.id]).map((kind) => `${kind.name} ${size(point.parts[kind.id])}`);
    const [from, to] = this.history.span.map(Math.round);
    this.box.setAttribute("aria-valuemin", from);
    this.box.setAttribute("aria-valuemax", to);
    this.box.setAttribute("aria-valuenow", Math.round(point.at));
    this.box.setAttribute("aria-valuetext", `${clock(point.at)}: ${parts.join(", ")}`);
    write(this.reading, this.cursor === null ? `${past(to - from)}${this.recalls.length ? "; ▼ a recall" : ""}` : `${clock(point.at)}: ${parts.join(", ")}`);
  }

  at(seconds) {
    if (seconds === null) return null;
    const near = (best, point) => (Math.abs(point.at - seconds) < Math.abs(best.at - seconds) ? point : best);
    return this.history.points.reduce(near);
  }

  point(offset) {
    if (!this.plot) return;
    const [from, to] = this.history.span;
    const share = (offset - this.plot.left) / this.plot.width;
    this.move(share < 0 || share > 1 ? null : from + share * (to - from));
  }

  press(event) {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
    const [from, to] = this.history.span;
    if (event.key === "Home") this.move(Math.max(from, this.history.points[0].at));
    else if (event.key === "End" || event.key === "Escape") this.move(null);
    else if (event.key in steps) {
      const at = (this.cursor ?? to) + steps[event.key] * this.history.period;
      this.move(at > to ? null : Math.max(at, from));
    } else return;
    event.preventDefault();
  }

  move(cursor) {
    if (cursor === this.cursor) return;
    this.cursor = cursor;
    this.draw();
  }
}

function labels(left, right, y, name, amount) {
  return [shape("text", { class: "label", x: left, y }, name), shape("text", { class: "tick", x: right, y, "text-anchor": "end" }, amount)];
}

function past(seconds) {
  return seconds < 90 ? `the last ${seconds} seconds` : `the last ${Math.round(seconds / 60)} minutes`;
}
