// Pools with what they lack, and their volumes with fill and access mode.

import { badge, bar, byId, make, sync } from "./dom.js";
import { readableBytes } from "./words.js";
import { accessBadge, fill, fillBar, percent, reachBadge } from "./volumes.js";

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

function poolCard({ pool, volumes, more }) {
  const ratio = sumOf(volumes);
  return make(
    "li",
    { class: "pool card", "data-pool": pool.name },
    make(
      "div",
      { class: "row" },
      make("h3", {}, pool.name),
      make("span", { class: "tag" }, pool.type),
      pool.debt_bytes ? badge("warn", `${readableBytes(pool.debt_bytes)} NOT COPIED`) : pool.type === "copy" ? badge("ok", "COPIED") : null,
      make("span", { class: "quiet" }, `${pool.volumes} volumes on ${pool.nodes} nodes, ${pool.extents} extents, ${readableBytes(pool.stored_bytes)} stored`),
    ),
    make("div", { class: "row poolfill" }, bar(ratio, ratio !== null && ratio >= 0.9 ? "warn" : "plain", `${pool.name}: disks taken`), make("span", { class: "quiet" }, ratio === null ? "fill not heard" : `${percent(ratio)} of its disks taken`)),
    volumes.length
      ? make(
          "table",
          {},
          make("thead", {}, make("tr", {}, HEAD.map((each) => make("th", { scope: "col" }, each)))),
          make("tbody", {}, volumes.map(volumeRow)),
        )
      : null,
    more ? make("p", { class: "quiet" }, `and ${more} more volumes: copypool volumes`) : null,
  );
}

export function show(pools, volumes) {
  const byPool = Map.groupBy(volumes, (volume) => volume.pool);
  const sorted = pools.toSorted((one, other) => (one.type !== "primary") - (other.type !== "primary") || one.name.localeCompare(other.name));
  const cards = sorted.map((pool) => {
    const all = byPool.get(pool.name) ?? [];
    return { pool, volumes: all.slice(0, VOLUMES_MAX), more: Math.max(0, all.length - VOLUMES_MAX) };
  });
  sync(byId("pool-list"), cards, (each) => each.pool.id, poolCard);
}
