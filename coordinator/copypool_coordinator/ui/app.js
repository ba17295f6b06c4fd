// The page: signing in, asking every two seconds, and saying how old what it shows is.

import * as api from "./api.js";
import { byId, say } from "./dom.js";
import * as events from "./events.js";
import * as explain from "./explain.js";
import * as map from "./map.js";
import * as pools from "./pools.js";
import * as processes from "./processes.js";
import * as protection from "./protection.js";
import { readableAge } from "./words.js";

const PERIOD_MS = 2_000;
const HIDDEN_PERIOD_MS = 15_000; // nobody looks, but the tab's title still says how it is
const SOONEST_MS = 1_000; // events may come in hundreds
const STALE_S = 10; // an answer may take some seconds; older than this it is said aloud
const FAILURES_MAX = 2; // in a row; one may be an overloaded moment

const LISTS = { volumes: {}, pools: {}, processes: { limit: 100 } };
const NOTES = { volumes: "pools-note", pools: "pools-note", processes: "processes-note" };

let session = null; // what belongs to one sign-in; another object after the next

function begin() {
  session = { answers: {}, answeredMs: {}, forbidden: new Set(), failed: "", failures: 0, beganMs: Date.now(), wake: null };
  byId("login").hidden = true;
  byId("board").hidden = false;
  events.clear();
  explain.clear();
  for (const id of Object.values(NOTES)) say(byId(id), "");
  loop(session);
  events.start(() => session?.wake?.(), end);
}

function end(message = "") {
  session?.wake?.();
  session = null;
  events.stop();
  api.forget();
  byId("board").hidden = true;
  byId("login").hidden = false;
  document.title = "Copypool";
  say(byId("login-message"), message);
  byId("token").focus();
}

async function loop(mine) {
  while (session === mine) {
    const askedMs = Date.now();
    await refresh(mine);
    if (session !== mine) return;
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, document.hidden ? HIDDEN_PERIOD_MS : PERIOD_MS);
      mine.wake = () => {
        clearTimeout(timer);
        setTimeout(resolve, Math.max(0, SOONEST_MS - (Date.now() - askedMs)));
      };
    });
  }
}

async function refresh(mine) {
  const wanted = ["status", ...Object.keys(LISTS).filter((verb) => !mine.forbidden.has(verb))];
  await Promise.all(wanted.map((verb) => one(mine, verb)));
  if (session === mine) draw(mine);
}

async function one(mine, verb) {
  try {
    const answer = await api.ask(verb, LISTS[verb]);
    mine.answers[verb] = answer;
    mine.answeredMs[verb] = Date.now();
    if (verb === "status") [mine.failed, mine.failures] = ["", 0];
    if (NOTES[verb]) say(byId(NOTES[verb]), "");
  } catch (error) {
    if (!(error instanceof api.Refused)) throw error;
    if (session !== mine) return;
    if (error.code === "unauthorized") return end(error.message);
    if (error.code === "forbidden") mine.forbidden.add(verb);
    if (verb === "status") [mine.failed, mine.failures] = [error.message, mine.failures + 1];
    else if (NOTES[verb] && error.code !== "unreachable") say(byId(NOTES[verb]), `${error.message}${ageOf(mine, verb)}`);
  }
}

function ageOf(mine, verb) {
  const at = mine.answeredMs[verb];
  return at ? `; what is shown is ${readableAge((Date.now() - at) / 1000)} old` : "";
}

function draw(mine) {
  const { status, volumes, pools: poolList, processes: processList } = mine.answers;
  if (status && !mine.failures) protection.show(status);
  if (status) map.show(status.nodes, volumes?.items ?? []);
  if (poolList) pools.show(poolList.items, volumes?.items ?? []);
  if (processList) processes.show(processList.items);
  age();
}

// Once a second: how old is it, and does it still stand?
function age() {
  if (!session) return;
  const at = session.answeredMs.status ?? 0;
  const ageS = (Date.now() - (at || session.beganMs)) / 1000;
  const stale = session.failures >= FAILURES_MAX || (ageS > STALE_S && !document.hidden);
  const fresh = byId("fresh");
  fresh.className = `badge ${stale ? "bad" : at ? "ok" : "idle"}`;
  say(fresh, at ? `${stale ? "STALE: " : ""}${readableAge(ageS)} old` : "not answered yet");
  byId("board").classList.toggle("stale", stale);
  const why = session.failed || "the coordinator does not answer";
  say(byId("stale"), stale ? `${why}. ${at ? `What you see is ${readableAge(ageS)} old. ` : ""}Asking again every ${PERIOD_MS / 1000} s.` : "");
  if (stale) protection.doubt(ageS);
}

async function signIn(submitted) {
  submitted.preventDefault();
  const field = byId("token");
  const button = byId("login-form").querySelector("button");
  button.disabled = true;
  say(byId("login-message"), "");
  const token = field.value.trim();
  api.signIn(token);
  try {
    if (!/^[\x21-\x7e]+$/.test(token)) throw new api.Refused("unauthorized", "it holds characters that no token has");
    await api.ask("status");
    api.keep();
    field.value = "";
    begin();
  } catch (error) {
    if (!(error instanceof api.Refused)) throw error;
    api.forget();
    say(byId("login-message"), error.code === "unauthorized" ? `Wrong token: ${error.message}` : error.message);
    field.select();
  } finally {
    button.disabled = false;
  }
}

const loopback = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
byId("login-plaintext").hidden = location.protocol === "https:" || loopback;
byId("login-form").addEventListener("submit", signIn);
byId("sign-out").addEventListener("click", () => end());
byId("events-filter").addEventListener("input", events.show);
document.addEventListener("visibilitychange", () => session?.wake?.());
explain.start(end);
setInterval(age, 1_000);
byId("arriving").remove(); // not before: without one of its modules the page stays as it came, and says so
if (api.remembered()) begin();
else end();
