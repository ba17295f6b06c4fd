// The headline: is everything where policy says, and if not, why; the recovery point. From `status` alone.

import { badge, byId, make, say, sync } from "./dom.js";
import { headline, owed, printable, readableAge, readableBytes, readableTime, tone } from "./words.js";

const NAMESPACES_MAX = 12;
const WORDS = { ok: "OK", warn: "LOOK", bad: "BAD", idle: "NOT KNOWN" };

const count = (number) => number.toLocaleString("en-US");

// Label, value, what goes with it, tone.
function tiles(status) {
  const gone = status.lost_files + status.unavailable_files;
  const up = status.nodes.filter((node) => node.state === "up").length;
  const scrub = status.scrub;
  const tilesOf = [
    ["Recovery point", readableAge(status.debt_oldest_s), `${readableBytes(status.debt_bytes)} in ${count(status.debt_extents)} extents not copied`, status.debt_bytes ? "warn" : "ok"],
    ["Below policy", count(status.under_protected_extents), "extents with fewer good locations than wanted", status.under_protected_extents ? "warn" : "ok"],
    ["Damaged", count(status.damaged_locations), "locations", status.damaged_locations ? "warn" : "ok"],
    ["Files gone", count(gone), `${count(status.unavailable_files)} unavailable, ${count(status.lost_files)} lost${status.doubtful_files ? `, up to ${count(status.doubtful_files)} on damaged locations alone` : ""}${status.holed_extents ? `; ${count(status.holed_extents)} extents hold lost bytes` : ""}`, gone || status.doubtful_files ? "bad" : "ok"],
    ["Not read back yet", readableBytes(status.unverified_bytes), scrub && scrub.oldest_s ? `the rest within ${readableAge(scrub.oldest_s)} (period ${readableAge(scrub.period_s)})` : "young bytes are, soon", status.unverified_bytes && !status.healthy ? "idle" : "ok"],
    ["Stored", status.as_of_unix_s ? `${count(status.files)} files` : "not counted yet", status.as_of_unix_s ? `${readableBytes(status.bytes)}, as of ${readableTime(status.as_of_unix_s)}` : "", "idle"],
    ["Nodes", `${up} of ${status.nodes.length} up`, status.nodes.filter((node) => node.state !== "up").map((node) => `${node.name} is ${node.state}`).slice(0, 3).join(", "), up === status.nodes.length && up ? "ok" : up ? "warn" : "bad"],
    ["Leader", status.leader || "none", `answered by ${status.coordinator}, catalog ${status.catalog_down ? "does not answer" : readableBytes(status.catalog_bytes)}`, status.leader && !status.catalog_down ? "ok" : "bad"],
  ];
  return tilesOf.map(([label, value, more, of]) => ({ label, value, more, of }));
}

function tile({ label, value, more, of }) {
  return make(
    "li",
    { class: `tile ${of}` },
    make("span", { class: "label" }, label, of === "idle" ? null : badge(of, WORDS[of])),
    make("span", { class: "value" }, value),
    make("span", { class: "more" }, more),
  );
}

function owing(status) {
  const pools = status.pools
    .filter((each) => each.type === "copy")
    .map((each) => ({ of: "pool", name: each.pool, debt: each }));
  const namespaces = status.namespaces
    .map((each) => ({ of: "namespace", name: each.namespace, debt: each }))
    .sort((one, other) => other.debt.debt_oldest_s - one.debt.debt_oldest_s || other.debt.debt_bytes - one.debt.debt_bytes);
  return [...pools, ...namespaces.slice(0, NAMESPACES_MAX)].map(({ of, name, debt }) => ({
    of,
    name: printable(name),
    behind: debt.debt_bytes > 0,
    text: debt.debt_bytes ? owed(debt) : "all of it is copied",
  }));
}

export function show(status) {
  const line = headline(status);
  const [word, sentence] = [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)];
  byId("protection").dataset.tone = tone(status);
  byId("protection").dataset.line = line;
  say(byId("verdict-word"), word);
  say(byId("headline"), sentence);
  sync(byId("reasons"), status.reasons.slice(1), (each) => each, (each) => make("li", {}, each));
  sync(byId("tiles"), tiles(status), (each) => each.label, tile);
  const warnings = [...(status.brake ? [`brake: ${status.brake}`] : []), ...status.warnings];
  sync(byId("warnings"), warnings, (each) => each, (each) => make("li", {}, badge("warn", "WARNING"), make("span", {}, each)));
  sync(byId("owed"), owing(status), (each) => `${each.of} ${each.name}`, (each) =>
    make(
      "li",
      {},
      badge(each.behind ? "warn" : "ok", each.behind ? "BEHIND" : "COPIED"),
      make("span", { class: "who" }, make("span", { class: "quiet" }, each.of), " ", make("strong", {}, each.name)),
      make("span", { class: "what" }, each.text),
    ),
  );
  document.title = `${word}: Copypool`;
}

// The coordinator does not answer: what was green may be anything by now.
export function doubt(ageS) {
  const section = byId("protection");
  section.dataset.tone = "idle";
  const line = section.dataset.line;
  say(byId("verdict-word"), "NOT KNOWN");
  say(byId("headline"), line ? `${readableAge(ageS)} ago it was: ${line}` : "no coordinator has answered yet");
  document.title = "NOT KNOWN: Copypool";
}
