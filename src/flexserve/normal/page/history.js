// Sizes over time, as parts that add up to the machine's memory.

export const KINDS = [
  // from the bottom of the chart upwards
  { id: "weights", name: "weights", ours: true, always: true },
  { id: "kv", name: "KV", ours: true, always: true },
  { id: "scratch", name: "scratch", ours: true, always: true },
  { id: "unused", name: "unused", ours: true },
  { id: "process", name: "process", ours: true },
  { id: "others", name: "others", ours: false, always: true },
  { id: "free", name: "free", ours: false, always: true },
];

const LONGEST = 300; // seconds that the chart shows …
const SHORTEST = 60; // … and that it shows from the first sample on
const GAP = 3; // periods without a sample

export class History {
  constructor() {
    this.points = [];
    this.period = 1;
  }

  replace(points, period) {
    this.period = period;
    this.points = points.map(withParts);
  }

  add(state) {
    if (!state.models) return;
    // fromEntries, since a name may be anything, "__proto__" too
    const models = Object.fromEntries(state.models.map(({ name, resident, kv, scratch }) => [name, [resident, kv, scratch]]));
    const { total, available, secure_rss } = state.os;
    const { unused, recalling } = state.memory;
    const last = this.points.at(-1);
    if (last && last.at >= state.at) this.points.pop(); // the newest point of the history is this state
    this.points.push(withParts({ at: state.at, total, available, secure_rss, unused, recalling, models }));
    while (this.points[0].at < state.at - LONGEST) this.points.shift();
  }

  get newest() {
    return this.points.at(-1);
  }

  // The first and the last second of the chart.
  get span() {
    const last = this.newest?.at ?? 0;
    const first = this.points[0]?.at ?? last;
    return [last - Math.min(Math.max(last - first, SHORTEST), LONGEST), last];
  }

  // The points as runs without a gap between them.
  get runs() {
    const runs = [];
    let before = -Infinity;
    const from = this.span[0];
    for (const point of this.points) {
      if (point.at >= from - this.period) {
        if (point.at - before > GAP * this.period) runs.push([]);
        runs.at(-1).push(point);
        before = point.at;
      }
    }
    return runs;
  }
}

function withParts(point) {
  const [weights, kv, scratch] = [0, 1, 2].map((kind) =>
    Object.values(point.models).reduce((sum, sizes) => sum + sizes[kind], 0),
  );
  const unused = point.unused + point.recalling;
  const held = weights + kv + scratch + unused;
  const process = Math.max(0, point.secure_rss - held);
  const used = point.total - point.available;
  const others = Math.max(0, used - held - process);
  const free = Math.max(0, point.total - held - process - others);
  return { ...point, parts: { weights, kv, scratch, unused, process, others, free } };
}

export function ours(parts) {
  return KINDS.filter((kind) => kind.ours).reduce((sum, kind) => sum + parts[kind.id], 0);
}
