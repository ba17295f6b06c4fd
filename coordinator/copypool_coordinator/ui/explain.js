// Where a file is and why: `copypool explain`. Names are whatever people called their files.

import { Refused, ask } from "./api.js";
import { badge, byId, make, say } from "./dom.js";
import { explained, printable, readableBytes, readableTime } from "./words.js";

const SEGMENTS_MAX = 50;
const STATE_TONE = { good: "ok", copying: "busy", damaged: "bad", missing: "bad", dropping: "idle" };

function copyCard(copy, segment) {
  const where = `host ${copy.host || "-"}, zone ${copy.zone || "-"}`;
  return make(
    "li",
    { class: `copy ${copy.counted ? "ok" : "idle"}` },
    make(
      "div",
      { class: "row" },
      make("span", { class: "rank", title: "order of reading" }, copy.rank ? `${copy.rank}.` : "–"),
      make("strong", {}, copy.volume),
      make("span", {}, `on ${copy.node}`),
      badge(copy.reachable ? STATE_TONE[copy.state] : "bad", copy.reachable ? copy.state : `${copy.state}, not reachable`),
      copy.access === "readwrite" ? null : badge("warn", copy.access),
      badge(copy.counted ? "ok" : "idle", copy.counted ? "counts" : "does not count"),
    ),
    make("span", { class: "quiet" }, `pool ${copy.pool === copy.pool_type ? copy.pool : `${copy.pool} (${copy.pool_type})`}, ${printable(where)}; ${copy.held_bytes}/${segment.length} bytes, read back ${readableTime(copy.verified_unix_s)}`),
    make("span", {}, printable(copy.why)),
    copy.evidence ? make("span", { class: "outcome" }, printable(copy.evidence)) : null,
  );
}

function segmentCard(segment, number) {
  const pools = [segment.primary_pool, ...segment.copy_pools].join(", ");
  return make(
    "li",
    { class: "segment card" },
    make(
      "div",
      { class: "row" },
      make("h3", {}, `segment ${number}`),
      badge(segment.policy_met ? "ok" : "warn", segment.policy_met ? (segment.proven ? "PROVEN" : "AT POLICY") : "BELOW POLICY"),
      make("span", { class: "quiet" }, `${segment.length} bytes at ${segment.offset} of extent ${segment.extent} (${segment.sealed ? "sealed" : "open"}), wanted in ${pools}; ack rule ${segment.ack}`),
    ),
    make("ol", { class: "copies" }, segment.copies.map((copy) => copyCard(copy, segment))),
    segment.lacks.map((each) => make("p", {}, badge("warn", "LACKS"), " ", printable(each))),
    segment.doing.map((each) => make("p", {}, badge("busy", "DOING"), " ", printable(each))),
  );
}

function result(found) {
  const more = found.segments_total - Math.min(found.segments.length, SEGMENTS_MAX);
  return make(
    "div",
    { class: "explained" },
    make("p", { class: "answer" }, badge(found.policy_met ? "ok" : "warn", found.proven ? "PROVEN" : found.policy_met ? "AT POLICY" : "BELOW POLICY"), " ", make("span", { id: "explain-answer" }, explained(found))),
    make("p", { class: "quiet" }, `version ${found.version}, ${readableBytes(found.size)} (${found.size} bytes), stored ${readableTime(found.stored_unix_s)}, ${found.digest}`),
    found.notes.map((note) => make("p", {}, printable(note))),
    make("ul", { class: "segments" }, found.segments.slice(0, SEGMENTS_MAX).map(segmentCard)),
    more > 0 ? make("p", { class: "quiet" }, `and ${more} more segments: copypool explain --json`) : null,
  );
}

// Answer the form. `refused`: the token ended.
export function start(refused) {
  byId("explain-form").addEventListener("submit", async (submitted) => {
    submitted.preventDefault();
    const name = byId("explain-path").value;
    const slash = name.indexOf("/");
    const shown = byId("explain-result");
    shown.replaceChildren();
    if (slash < 1) return say(byId("explain-message"), "Name the file as namespace/path.");
    say(byId("explain-message"), "");
    shown.setAttribute("aria-busy", "true");
    try {
      shown.replaceChildren(result(await ask("explain", { namespace: name.slice(0, slash), path: name.slice(slash + 1) })));
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.code === "unauthorized") return refused(error.message);
      say(byId("explain-message"), error.message);
    } finally {
      shown.removeAttribute("aria-busy");
    }
  });
}

export function clear() {
  byId("explain-path").value = "";
  byId("explain-result").replaceChildren();
  say(byId("explain-message"), "");
}
