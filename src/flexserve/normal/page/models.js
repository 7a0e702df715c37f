// Each model: its state, its chunks of weights, and its memory over time.

import { byId, element, reconcile, shape, show, write } from "./dom.js";
import { count, size } from "./format.js";

const STATES = { loaded: "in memory", partial: "partly in memory", unloaded: "not in memory", loading: "opening", set_aside: "set aside" };
const CHUNK_STATES = ["absent", "loading", "resident", "evicting"]; // as the server calls them
const CHUNK_NAMES = ["on disk", "coming", "in memory", "going"];
const CELL = 7; // pixels of a chunk, its gap included
const MOST_ROWS = 4;
const SPARK = { width: 132, height: 34 };

export class Models {
  constructor(history) {
    this.history = history;
    this.models = [];
    this.chunk = 1;
    this.widths = new ResizeObserver(() => this.paint());
    this.widths.observe(byId("model-list"));
    for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
      matchMedia(query).addEventListener("change", () => this.paint());
    }
  }

  update(state) {
    this.models = state.models;
    this.chunk = state.memory.chunk;
    reconcile(byId("model-list"), this.models, { key: (model) => model.name, make: makeRow, update: (row, model) => this.updateRow(row, model) });
    show(byId("models-empty"), this.models.length === 0);
    show(byId("chunk-legend"), this.models.length > 0);
    write(byId("chunk-size"), `a chunk of ${size(this.chunk)}`);
  }

  paint() {
    for (const row of byId("model-list").children) {
      const model = this.models.find(({ name }) => name === row.dataset.key);
      if (model) this.updateRow(row, model);
    }
  }

  updateRow(row, model) {
    const [name, about, sizes, error, note] = ["name", "state", "sizes", "error", "note"].map((part) => row.querySelector(`.${part}`));
    write(name, model.name);
    row.dataset.state = model.state;
    write(about, [model.running ? "answering" : STATES[model.state] ?? model.state, model.pinned && "pinned"].filter(Boolean).join(", "));
    const parts = [`${size(model.resident)} of ${size(model.weights)}`, model.kv && `KV ${size(model.kv)}`, model.scratch && `scratch ${size(model.scratch)}`];
    write(sizes, parts.filter(Boolean).map((part) => part.replaceAll(" ", "\u00a0")).join(" · "));
    write(error, model.error ? `${model.error.message} ${model.error.hint}` : "");
    write(note, model.rewarmed ? `${size(model.rewarmed)} came back without a request: ${model.rewarmed_for}` : "");
    this.drawChunks(row.querySelector("canvas"), model);
    this.drawSpark(row.querySelector("svg"), model.name);
  }

  drawChunks(canvas, model) {
    const known = (model.chunks ?? []).map(([state, length]) => [CHUNK_STATES.indexOf(state), length]);
    const runs = known.length ? known : byCounts(model, this.chunk);
    const total = runs.reduce((sum, [, length]) => sum + length, 0);
    const width = canvas.parentElement.clientWidth;
    const columns = Math.max(1, Math.floor(width / CELL));
    const share = Math.max(1, Math.ceil(total / (columns * MOST_ROWS))); // chunks of a square
    const cells = Math.ceil(total / share);
    const rows = Math.ceil(cells / columns);
    const ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = rows * CELL * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(canvas);
    const colours = CHUNK_STATES.map((state) => style.getPropertyValue(`--chunk-${state}`));
    let cell = 0;
    for (const state of squares(runs, share)) {
      pen.fillStyle = colours[state];
      pen.fillRect((cell % columns) * CELL, Math.floor(cell / columns) * CELL, CELL - 1.5, CELL - 1.5);
      cell += 1;
    }
    canvas.setAttribute("aria-label", `${count(total, "chunk")} of weights: ${inWords(runs)}`);
    canvas.title = share > 1 ? `${inWords(runs)}; here a square is ${share} chunks` : inWords(runs);
  }

  drawSpark(picture, name) {
    const [from, to] = this.history.span;
    const runs = this.history.runs;
    const top = Math.max(1, ...runs.flat().flatMap((point) => Object.values(point.models).map((sizes) => sizes.reduce((sum, part) => sum + part, 0))));
    const x = (at) => (SPARK.width * (at - from)) / (to - from);
    const y = (bytes) => SPARK.height * (1 - bytes / top);
    const areas = ["weights", "kv", "scratch"].map((kind, place) => {
      const paths = runs.filter((run) => run.length > 1).map((run) => {
        const upTo = (point, kinds) => (Object.hasOwn(point.models, name) ? point.models[name] : [0, 0, 0]).slice(0, kinds).reduce((sum, part) => sum + part, 0);
        const edge = (kinds) => run.map((point) => `${x(point.at).toFixed(1)} ${y(upTo(point, kinds)).toFixed(1)}`);
        return `M${[...edge(place + 1), ...edge(place).reverse()].join("L")}Z`;
      });
      return shape("path", { class: `area ${kind}`, d: paths.join("") });
    });
    const base = shape("line", { class: "axis", x1: 0, x2: SPARK.width, y1: SPARK.height - 0.5, y2: SPARK.height - 0.5 });
    picture.replaceChildren(...areas, base);
  }
}

function makeRow() {
  const row = element("li", "model");
  const head = element("div", "head");
  head.append(element("h3", "name"), element("span", "state"));
  const chunks = element("div", "chunks");
  const canvas = element("canvas");
  canvas.setAttribute("role", "img");
  chunks.append(canvas);
  const spark = shape("svg", { class: "spark", width: SPARK.width, height: SPARK.height, viewBox: `0 0 ${SPARK.width} ${SPARK.height}`, "aria-hidden": "true" });
  row.append(head, element("p", "sizes quiet"), spark, chunks, element("p", "error"), element("p", "note quiet"));
  return row;
}

// Of a model that is not open, or whose chunks change too often: as many as are counted, the first ones first.
function byCounts(model, chunk) {
  const total = Math.ceil(model.weights / chunk);
  const resident = Math.min(total, Math.round(model.resident / chunk));
  return [[2, resident], [0, total - resident]].filter(([, length]) => length);
}

// The state that most of each square's chunks are in; a moving one shows wherever there is one.
function* squares(runs, share) {
  const states = runs.flatMap(([state, length]) => Array(length).fill(state));
  for (let first = 0; first < states.length; first += share) {
    const part = states.slice(first, first + share);
    const moving = part.find((state) => state === 1 || state === 3);
    yield moving ?? (2 * part.filter((state) => state === 2).length >= part.length ? 2 : 0);
  }
}

function inWords(runs) {
  const sums = [0, 0, 0, 0];
  for (const [state, length] of runs) sums[state] += length;
  return [2, 1, 3, 0].filter((state) => sums[state]).map((state) => `${sums[state]} ${CHUNK_NAMES[state]}`).join(", ");
}
