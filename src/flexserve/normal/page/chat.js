// A chat with one model. The conversation is in this page and in no other place.

import { byId, element, show, write } from "./dom.js";
import { duration } from "./format.js";
import { splitOf } from "./requests.js";
import { eventsOf, headers, messageOf } from "./stream.js";

export class Chat {
  constructor() {
    this.turns = [];
    this.running = null; // what aborts the answer that is being made
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.ask();
      }
    });
    byId("prompt").addEventListener("input", () => grow(byId("prompt")));
    byId("stop").addEventListener("click", () => this.running?.abort());
    byId("clear").addEventListener("click", () => this.clear());
  }

  // The models that write text, as far as anybody knows.
  update(models) {
    const names = models.filter((model) => !model.abilities || model.abilities.text).map((model) => model.name);
    const select = byId("model");
    if ([...select.options].map((option) => option.value).join("\n") !== names.join("\n")) {
      const chosen = select.value;
      select.replaceChildren(...names.map((name) => new Option(name, name)));
      if (names.includes(chosen)) select.value = chosen;
    }
    show(select, names.length > 0);
    byId("send").disabled = names.length === 0;
  }

  clear() {
    this.running?.abort();
    this.turns = [];
    for (const turn of [...byId("turns").querySelectorAll(".turn")]) turn.remove();
    show(byId("turns-empty"), true);
    show(byId("clear"), false);
    byId("prompt").focus();
  }

  async ask() {
    const prompt = byId("prompt");
    const text = prompt.value.trim();
    if (!text || this.running || byId("send").disabled) return;
    prompt.value = "";
    grow(prompt);
    this.turns.push({ role: "user", content: text });
    addTurn("user").said.textContent = text;
    this.running = new AbortController();
    this.busy(true);
    const answer = addTurn("assistant");
    const got = { text: "", thought: "", usage: null };
    try {
      await this.read(answer, got);
      write(answer.about, got.usage ? spent(got.usage) : "");
    } catch (error) {
      const stopped = this.running.signal.aborted;
      write(answer.about, stopped ? "stopped" : error.name === "TypeError" ? "The server went away." : error.message);
      answer.about.classList.toggle("error", !stopped);
    }
    if (got.text) this.turns.push({ role: "assistant", content: got.text });
    else this.turns.pop();
    answer.turn.removeAttribute("aria-busy");
    this.running = null;
    this.busy(false);
  }

  async read(answer, got) {
    const body = { model: byId("model").value, messages: this.turns, stream: true, stream_options: { include_usage: true } };
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { ...headers(), "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: this.running.signal,
    });
    if (!response.ok) throw new Error(await messageOf(response));
    for await (const data of eventsOf(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      got.usage = chunk.usage ?? got.usage;
      const delta = chunk.choices?.[0]?.delta ?? {};
      got.thought += delta.reasoning_content ?? "";
      got.text += delta.content ?? "";
      follow(() => {
        show(answer.thoughts, got.thought !== "");
        write(answer.thought, got.thought);
        write(answer.said, got.text);
      });
    }
  }

  busy(running) {
    show(byId("stop"), running);
    show(byId("send"), !running);
    show(byId("clear"), true);
    byId("model").disabled = running;
    if (!running && document.activeElement === document.body) byId("prompt").focus();
  }
}

function addTurn(role) {
  show(byId("turns-empty"), false);
  const turn = element("article", `turn ${role}`);
  const who = element("h3", "unseen", role === "user" ? "You" : "Model");
  const thoughts = element("details", "thoughts");
  const thought = element("p");
  thoughts.append(element("summary", "", "Thought"), thought);
  thoughts.hidden = true;
  const said = element("p", "said");
  const about = element("p", "about quiet");
  turn.append(who, thoughts, said, about);
  if (role === "assistant") turn.setAttribute("aria-busy", "true");
  byId("turns").append(turn);
  byId("turns").scrollTop = byId("turns").scrollHeight;
  return { turn, thoughts, thought, said, about };
}

// Changes the conversation, and stays at its end unless the reader went up.
function follow(change) {
  const turns = byId("turns");
  const atEnd = turns.scrollHeight - turns.scrollTop - turns.clientHeight < 40;
  change();
  if (atEnd) turns.scrollTop = turns.scrollHeight;
}

function grow(prompt) {
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight + 2, 200)}px`;
}

function spent({ completion_tokens: tokens, timings }) {
  const parts = splitOf({ ttft: timings.ttft_ms, queue: timings.queue_ms, restore: timings.restore_ms, prefill: timings.prefill_ms });
  const names = { queue: "queue", restore: "restore", prefill: "prompt" };
  const split = Object.keys(names).filter((part) => parts[part] >= 1).map((part) => `${names[part]} ${duration(parts[part])}`);
  const first = `first token ${duration(timings.ttft_ms)}${split.length ? ` (${split.join(", ")})` : ""}`;
  const speed = tokens > 1 && timings.decode_ms ? `, then ${((1000 * (tokens - 1)) / timings.decode_ms).toFixed(1)} tok/s` : "";
  return first + speed;
}
