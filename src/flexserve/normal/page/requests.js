// Requests, the newest first, each with the time to its first token and what that was spent on.

import { byId, element, reconcile, show, write } from "./dom.js";
import { clock, count, duration, size } from "./format.js";

const MOST = 64;
const PARTS = ["queue", "restore", "prefill"];
const PART_NAMES = { queue: "queue", restore: "restore", prefill: "prompt" };
const ENDS = { stop: "ended", length: "cut at its limit", cancelled: "cancelled", error: "failed", other: "ended" };

export class Requests {
  constructor() {
    this.known = new Map();
  }

  clear() {
    this.known.clear();
    this.draw();
  }

  update(requests) {
    for (const request of requests) this.known.set(request.number, request);
    for (const number of [...this.known.keys()].sort((a, b) => a - b).slice(0, -MOST)) this.known.delete(number);
    this.draw();
  }

  count(state) {
    write(byId("requests-sum"), state.models ? `${state.running} running, ${state.queued} waiting` : "");
  }

  draw() {
    const newest = [...this.known.values()].sort((a, b) => b.number - a.number);
    const longest = Math.max(1, ...newest.map(({ ttft }) => ttft));
    reconcile(byId("request-list"), newest, { key: ({ number }) => number, make: makeRow, update: (row, request) => updateRow(row, request, longest) });
    show(byId("requests-empty"), newest.length === 0);
    show(byId("request-list"), newest.length > 0);
    show(byId("split-legend"), newest.length > 0);
  }
}

function makeRow() {
  const row = element("li", "request");
  const bar = element("span", "split");
  bar.setAttribute("aria-hidden", "true");
  bar.append(...PARTS.map((part) => element("span", part)));
  row.append(element("span", "when quiet"), element("span", "who"), element("span", "first"), bar, element("span", "rest quiet"));
  return row;
}

function updateRow(row, request, longest) {
  const [when, who, first, bar, rest] = row.children;
  write(when, clock(request.at));
  write(who, request.model);
  write(first, request.ttft ? duration(request.ttft) : "…");
  const parts = splitOf(request);
  row.classList.toggle("running", !request.reason);
  for (const [place, part] of PARTS.entries()) bar.children[place].style.flexBasis = `${(100 * parts[part]) / longest}%`;
  const inWords = PARTS.filter((part) => parts[part] >= 0.05).map((part) => `${PART_NAMES[part]} ${duration(parts[part])}`);
  row.title = inWords.join(", ");
  write(rest, restOf(request, inWords));
}

function restOf(request, inWords) {
  const cached = request.cached_tokens ? ` (${request.cached_tokens} reused)` : "";
  const speed = request.decode && request.tokens > 1 ? `${((1000 * (request.tokens - 1)) / request.decode).toFixed(1)} tok/s` : "";
  const restored = request.restored_bytes ? `${size(request.restored_bytes)} restored` : "";
  const end = request.reason ? ENDS[request.reason] ?? request.reason : "running";
  const unless = end === "ended" ? "" : end;
  return [...inWords, `${request.prompt_tokens}${cached} → ${count(request.tokens, "token")}`, speed, restored, unless].filter(Boolean).map((part) => part.replaceAll(" ", "\u00a0")).join(" · ");
}

// What the time to the first token consists of. `prefill` has the waits for memory in it.
export function splitOf({ ttft, queue, restore, prefill }) {
  const compute = Math.max(0, (prefill || ttft - queue) - restore);
  return { queue, restore, prefill: Math.min(compute, Math.max(0, ttft - queue - restore)) };
}
