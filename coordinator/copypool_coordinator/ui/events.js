// The event log, the newest first, as it grows. A stream that is cut is taken up again at the last id that came.

import { Refused, follow } from "./api.js";
import { byId, make, say, sync } from "./dom.js";
import { printable, readableTime } from "./words.js";

const KEPT_MAX = 500;
const SHOWN_MAX = 200;
const RETRY_MIN_MS = 1_000;
const RETRY_MAX_MS = 10_000;
const GRAVE = /Damaged|Away|Lost|Engaged|Readonly|Forced|Incomplete|Fallback/;

let known = new Map(); // id -> event
let state = { tone: "idle", word: "not followed yet", heardMs: 0 };
let running = null;

function mark(tone, word) {
  state = { tone, word, heardMs: tone === "ok" ? Date.now() : state.heardMs };
  const live = byId("events-live");
  live.className = `badge ${tone}`;
  say(live, word);
}

const about = (event) =>
  [event.node && `node ${event.node}`, event.volume && `volume ${event.volume}`, event.extent && `extent ${event.extent}`].filter(Boolean).join(", ");

function line(event) {
  return make(
    "li",
    { "data-event": event.id, class: GRAVE.test(event.kind) ? "grave" : "" },
    make("time", { datetime: new Date(event.unix_s * 1000).toISOString() }, readableTime(event.unix_s)),
    make("strong", { class: "kind" }, event.kind),
    make("span", { class: "text" }, make("span", { class: "quiet" }, about(event) ? `${about(event)}: ` : ""), printable(event.message), make("span", { class: "quiet" }, ` · ${printable(event.who)}`)),
  );
}

export function show() {
  const wanted = byId("events-filter").value.trim().toLowerCase();
  const newest = [...known.values()].sort((one, other) => (one.id < other.id ? 1 : -1));
  const found = newest.filter((event) => !wanted || `${event.kind} ${about(event)} ${event.who} ${event.message}`.toLowerCase().includes(wanted));
  sync(byId("event-list"), found.slice(0, SHOWN_MAX), (event) => event.id, line);
  byId("events-none").hidden = found.length > 0 || !state.heardMs;
  if (known.size > KEPT_MAX) known = new Map(newest.slice(0, KEPT_MAX).map((event) => [event.id, event]));
}

const newestId = () => [...known.keys()].reduce((one, other) => (one > other ? one : other), "");

// Follow until `stop`. `changed`: something happened that the rest of the page shows too. `refused`: the token ended.
export async function start(changed, refused) {
  stop();
  const run = new AbortController();
  running = run;
  let retryMs = RETRY_MIN_MS;
  let drawing = false;
  const draw = () => {
    if (drawing) return;
    drawing = true;
    setTimeout(() => {
      drawing = false;
      if (run.signal.aborted) return;
      show();
      changed();
    }, 100);
  };
  const take = (kind, content) => {
    retryMs = RETRY_MIN_MS;
    if (kind === "trouble") mark("warn", `waiting: ${content.message}`);
    else if (kind === "gap") say(byId("events-note"), "More happened meanwhile than is shown here: copypool events --since ...");
    else mark("ok", "LIVE");
    if (kind === "log" && !known.has(content.id)) {
      known.set(content.id, content);
      draw();
    }
  };
  while (!run.signal.aborted) {
    try {
      await follow(newestId(), take, run.signal);
    } catch (error) {
      if (run.signal.aborted) return;
      if (!(error instanceof Refused)) throw error;
      if (error.code === "unauthorized") return refused(error.message);
      if (error.code === "forbidden") {
        mark("idle", "NOT SHOWN");
        byId("events-box").hidden = true;
        return say(byId("events-note"), error.message);
      }
      const last = state.heardMs ? `, last heard ${readableTime(state.heardMs / 1000)}` : "";
      mark("warn", `NOT LIVE${last}`);
    }
    await new Promise((resolve) => setTimeout(resolve, retryMs));
    retryMs = Math.min(RETRY_MAX_MS, retryMs * 2);
  }
}

export function stop() {
  running?.abort();
  running = null;
}

export function clear() {
  known = new Map();
  state.heardMs = 0;
  byId("events-box").hidden = false;
  say(byId("events-note"), "");
  show();
}
