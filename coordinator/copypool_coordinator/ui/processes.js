// Long jobs: those that run with progress, pace and ETA, then the last ones that ended.

import { badge, bar, byId, make, say, sync } from "./dom.js";
import { printable, readableAge, readableBytes, readableTime } from "./words.js";

const ENDED_MAX = 5;
const TONE = { running: "busy", done: "ok", incomplete: "warn", cancelled: "idle", failed: "bad" };

function ratioOf(each) {
  if (each.total_bytes) return each.done_bytes / each.total_bytes;
  return each.total_extents ? each.done_extents / each.total_extents : each.state === "done" ? 1 : 0;
}

function card(each) {
  const ratio = ratioOf(each);
  const running = each.state === "running";
  const done = `${each.done_extents} of ${each.total_extents} extents, ${readableBytes(each.done_bytes)} of ${readableBytes(each.total_bytes)}`;
  const pace = `${readableBytes(Math.round(each.bytes_per_s))}/s, ETA ${each.eta_s === null ? "-" : readableAge(each.eta_s)}`;
  return make(
    "li",
    { class: "process card", "data-process": each.id, "data-state": each.state },
    make(
      "div",
      { class: "row" },
      make("strong", {}, `${each.verb} of ${printable(each.what)}`),
      badge(TONE[each.state], each.state.toUpperCase()),
      make("span", { class: "quiet" }, `asked for by ${printable(each.who)}, started ${readableTime(each.created_unix_s)}${running ? "" : `, ended ${readableTime(each.ended_unix_s)}`}`),
    ),
    make("div", { class: "row" }, bar(ratio, running ? "busy" : "plain", `${each.verb}: done`), make("span", { class: "share" }, `${Math.floor(ratio * 100)} %`)),
    make("span", {}, running ? `${done}; ${pace}` : done, each.verb === "audit" ? `; ${each.found_damaged} bad locations found` : ""),
    each.outcome ? make("span", { class: "outcome" }, printable(each.outcome)) : null,
    make("span", { class: "quiet small" }, each.id),
  );
}

// `items`: newest first.
export function show(items) {
  const running = items.filter((each) => each.state === "running");
  const ended = items.filter((each) => each.state !== "running").slice(0, ENDED_MAX);
  say(byId("process-sum"), `${running.length} running`);
  byId("process-none").hidden = items.length > 0;
  sync(byId("process-list"), [...running, ...ended], (each) => each.id, card);
}
