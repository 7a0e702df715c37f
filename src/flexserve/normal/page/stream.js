// The server's events, read with fetch, because only so a key can be sent beside the address. Connects
// again by itself. The key lives in this module, and nowhere else.

const FIRST_WAIT = 500; // milliseconds
const LONGEST_WAIT = 5000;
const SILENCE = 8000; // the server says something each second

let key = "";

export function setKey(text) {
  key = text;
}

export function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// Calls `on.event(data)`, `on.open()`, `on.gone(seconds)` and `on.refused(status, message)`. After `refused`
// nothing more comes: the caller starts it again.
export async function follow(on) {
  let wait = FIRST_WAIT;
  for (;;) {
    const quiet = new AbortController();
    let timer = setTimeout(() => quiet.abort(), SILENCE);
    try {
      const response = await fetch("events?follow=true", { headers: headers(), signal: quiet.signal, cache: "no-store" });
      if ([401, 403].includes(response.status)) {
        return on.refused(response.status, await messageOf(response));
      }
      if (!response.ok) throw new Error(String(response.status));
      on.open();
      for await (const data of eventsOf(response.body)) {
        clearTimeout(timer);
        timer = setTimeout(() => quiet.abort(), SILENCE);
        wait = FIRST_WAIT;
        on.event(JSON.parse(data));
      }
    } catch (error) {
      if (error instanceof TypeError || error instanceof DOMException || error instanceof Error) {
        // gone, silent, or not able to serve: all the same here
      }
    } finally {
      clearTimeout(timer);
    }
    on.gone(wait / 1000);
    await new Promise((done) => setTimeout(done, wait));
    wait = Math.min(2 * wait, LONGEST_WAIT);
  }
}

export async function messageOf(response) {
  try {
    return String((await response.json()).error.message);
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

// Yields the data of each server-sent event of `body`; comments are skipped.
export async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data: "));
        if (lines.length) yield lines.map((line) => line.slice(6)).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
