// The page: hears the server's events and hands each to the part that shows it.

import { Chart } from "./chart.js";
import { Chat } from "./chat.js";
import { Decisions } from "./decisions.js";
import { byId, show, write } from "./dom.js";
import { size } from "./format.js";
import { History, ours } from "./history.js";
import { Models } from "./models.js";
import { Requests } from "./requests.js";
import { follow, setKey } from "./stream.js";

const STATUSES = { ok: "ready", starting: "starting", restarting: "restarting", draining: "finishing", stopped: "stopped", failed: "failed" };

const history = new History();
const chart = new Chart(byId("chart"), byId("reading"), history);
const models = new Models(history);
const requests = new Requests();
const decisions = new Decisions();
const chat = new Chat();

const on = {
  open() {
    byId("key").value = "";
    show(byId("key-form"), false);
    show(byId("picture"), true);
    requests.clear();
    decisions.clear();
  },
  event(data) {
    switch (data.type) {
      case "history":
        history.replace(data.points, data.period);
        break;
      case "state":
        showState(data);
        break;
      case "decisions":
        decisions.update(data.decisions);
        chart.recalls = decisions.recalls;
        chart.draw();
        break;
      case "requests":
        requests.update(data.requests);
        break;
    }
  },
  gone() {
    status("gone", "no connection");
    notice("The server does not answer. This page connects again by itself.");
    document.body.classList.add("stale");
  },
  refused(code, message) {
    status("refused", code === 401 ? "wants a key" : "refused");
    if (code !== 401) return notice(message);
    notice("");
    show(byId("picture"), false);
    show(byId("key-form"), true);
    write(byId("key-error"), byId("key").value ? "The server does not know this key." : "");
    byId("key").toggleAttribute("aria-invalid", byId("key").value !== "");
    byId("key").focus();
    byId("key").select();
  },
};

function showState(state) {
  document.body.classList.remove("stale");
  status(state.status, STATUSES[state.status] ?? state.status);
  notice(state.status === "ok" || !state.error ? "" : `${state.error.message} ${state.error.hint}`);
  const { name, summary } = state.protection;
  document.body.classList.toggle("unprotected", !state.protection.protected);
  write(byId("protection-name"), state.protection.protected ? name : `${name}: unprotected`);
  write(byId("protection-summary"), summary);
  show(byId("protection"), true);
  requests.count(state);
  decisions.sum(state.counters);
  if (!state.models) return;
  history.add(state);
  const { parts, total } = history.newest;
  const budget = state.budget ? `; it may have ${size(state.budget.size)}` : "";
  write(byId("memory-sum"), `FlexServe has ${size(ours(parts))} of ${size(total)}${budget}`);
  byId("memory-sum").title = state.budget?.reason ?? "";
  chart.draw();
  models.update(state);
  chat.update(state.models);
}

function status(name, text) {
  byId("status").dataset.status = name;
  write(byId("status-text"), text);
  document.title = name === "ok" ? "FlexServe" : `FlexServe: ${text}`;
}

function notice(text) {
  write(byId("notice"), text);
  show(byId("notice"), text !== "");
}

for (const button of document.querySelectorAll("[data-scope]")) {
  button.addEventListener("click", () => {
    for (const other of document.querySelectorAll("[data-scope]")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    chart.scope = button.dataset.scope;
    chart.draw();
  });
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value.trim());
  follow(on);
});

follow(on);
