// Pools with what they lack, and their volumes with fill and access mode.

import { badge, bar, byId, make, say, sync } from "./dom.js";
import { readableBytes } from "./words.js";
import { FULL, accessBadge, fillBar, fill, percent, reachBadge, troubledFirst } from "./volumes.js";

const FEW = 12; // volumes of a pool that are shown at first, those in trouble before the others
const VOLUMES_MAX = 200; // of one pool
const HEAD = ["volume", "node", "access", "state", "disk taken", "stored", "free", "extents"];

const cell = (label, ...content) => make("td", { "data-label": label }, ...content);

function volumeRow(volume) {
  return make(
    "tr",
    { "data-volume": volume.name },
    make("th", { scope: "row" }, volume.name),
    cell("node", volume.node || "-"),
    cell("access", accessBadge(volume)),
    cell(
      "state",
      reachBadge(volume),
      volume.damaged ? badge("bad", `${volume.damaged} damaged`) : null,
      volume.unknown_extents ? badge("warn", `${volume.unknown_extents} unknown`) : null,
    ),
    cell("disk taken", make("span", { class: "filled-cell" }, fillBar(volume), percent(fill(volume)))),
    cell("stored", readableBytes(volume.stored_bytes)),
    cell("free", readableBytes(volume.free_bytes)),
    cell("extents", String(volume.extents)),
  );
}

function sumOf(volumes) {
  const known = volumes.filter((volume) => volume.total_bytes > 0);
  const total = known.reduce((sum, volume) => sum + volume.total_bytes, 0);
  return total ? 1 - known.reduce((sum, volume) => sum + volume.free_bytes, 0) / total : null;
}

// The card of a pool stays the same element: its button keeps the focus, and what was opened stays open.
function poolCard() {
  const button = make("button", { class: "plain", type: "button" });
  const card = make(
    "li",
    { class: "pool card" },
    make("div", { class: "row head" }),
    make("div", { class: "row poolfill" }),
    make("table", {}, make("thead", {}, make("tr", {}, HEAD.map((each) => make("th", { scope: "col" }, each)))), make("tbody")),
    button,
  );
  button.addEventListener("click", () => {
    card.toggleAttribute("data-all");
    again();
  });
  return card;
}

function fillCard(card, pool, volumes) {
  const ratio = sumOf(volumes);
  const fact = `${pool.volumes} volumes on ${pool.nodes} nodes, ${pool.extents} extents, ${readableBytes(pool.stored_bytes)} stored`;
  card.dataset.pool = pool.name;
  const copied = pool.type === "copy" ? badge("ok", "COPIED") : null;
  card.querySelector(".head").replaceChildren(
    ...[
      make("h3", {}, pool.name),
      make("span", { class: "tag" }, pool.type),
      pool.debt_bytes ? badge("warn", `${readableBytes(pool.debt_bytes)} NOT COPIED`) : copied,
      make("span", { class: "quiet" }, fact),
    ].filter(Boolean),
  );
  card.querySelector(".poolfill").replaceChildren(
    bar(ratio, ratio !== null && ratio >= FULL ? "warn" : "plain", `${pool.name}: disks taken`),
    make("span", { class: "quiet" }, ratio === null ? "fill not heard" : `${percent(ratio)} of its disks taken`),
  );
  const all = card.hasAttribute("data-all");
  const shown = troubledFirst(volumes).slice(0, all ? VOLUMES_MAX : FEW);
  card.querySelector("table").hidden = volumes.length === 0;
  sync(card.querySelector("tbody"), shown, (volume) => volume.id, volumeRow);
  const button = card.querySelector("button");
  const most = volumes.length > VOLUMES_MAX ? `the first ${VOLUMES_MAX} of ${volumes.length}` : `all ${volumes.length}`;
  say(button, volumes.length > FEW ? (all ? "Show fewer volumes" : `Show ${most} volumes`) : "");
}

let again = () => {};

export function show(pools, volumes) {
  again = () => show(pools, volumes);
  const byPool = Map.groupBy(volumes, (volume) => volume.pool);
  const sorted = pools.toSorted((one, other) => (one.type !== "primary") - (other.type !== "primary") || one.name.localeCompare(other.name));
  const list = byId("pool-list");
  sync(list, sorted.map((pool) => pool.id), (id) => id, poolCard);
  sorted.forEach((pool, index) => fillCard(list.children[index], pool, byPool.get(pool.name) ?? []));
}
