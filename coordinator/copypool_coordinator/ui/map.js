// The cluster by zone and node: sessions, absence, maintenance, and the volumes of each node.

import { badge, byId, make, say, sync } from "./dom.js";
import { printable, readableAge, readableBytes, readableTime } from "./words.js";
import { accessBadge, fill, fillBar, percent, troubledFirst } from "./volumes.js";

const NODES_MAX = 400;
const VOLUMES_MAX = 6; // of one node
const TONE = { up: "ok", silent: "warn", away: "bad" };

function stateOf(node) {
  if (node.state === "away") return `away since ${readableTime(node.away_since_unix_s)}`;
  const heard = node.heartbeat_age_s === null ? "not heard here yet" : `heard ${readableAge(node.heartbeat_age_s)} ago`;
  return node.state === "silent" ? `silent: last ${heard}` : heard;
}

function volumeLine(volume) {
  return make(
    "li",
    { class: volume.reachable ? "" : "gone" },
    make("span", { class: "name" }, volume.name),
    make("span", { class: "quiet" }, volume.pool === volume.pool_type ? volume.pool : `${volume.pool} (${volume.pool_type})`),
    volume.access === "readwrite" && !volume.intent ? null : accessBadge(volume),
    volume.damaged ? badge("bad", `${volume.damaged} damaged`) : null,
    make("span", { class: "line" }, fillBar(volume), make("span", { class: "fill" }, volume.reachable ? percent(fill(volume)) : "not reachable")),
  );
}

function nodeCard({ node, volumes }) {
  const tone = node.maintenance_until_unix_s === null ? TONE[node.state] : "warn";
  return make(
    "li",
    { class: `node ${tone}`, "data-node": node.name, "data-state": node.state },
    make(
      "div",
      { class: "row" },
      make("strong", {}, node.name),
      badge(TONE[node.state], node.state.toUpperCase()),
      node.maintenance_until_unix_s === null ? null : badge("warn", "MAINTENANCE"),
    ),
    make("span", { class: "quiet" }, node.host ? `host ${printable(node.host)}, ` : "", stateOf(node)),
    node.maintenance_until_unix_s === null ? null : make("span", {}, `maintenance until ${readableTime(node.maintenance_until_unix_s)}`),
    volumes.length
      ? make(
          "ul",
          { class: "volumes" },
          volumes.slice(0, VOLUMES_MAX).map(volumeLine),
          volumes.length > VOLUMES_MAX ? make("li", { class: "quiet" }, `and ${volumes.length - VOLUMES_MAX} more`) : null,
        )
      : make("span", { class: "quiet" }, `${node.volumes} volumes, ${readableBytes(node.free_bytes)} free`),
  );
}

// Away before silent before maintenance before all others.
const rank = (node) => (node.state === "away" ? 0 : node.state === "silent" ? 1 : node.maintenance_until_unix_s !== null ? 2 : 3);

const inOrder = (nodes) =>
  nodes.toSorted((one, other) => rank(one) - rank(other) || one.name.localeCompare(other.name, "en", { numeric: true }));

// `volumes`: none where the token may not see them.
export function show(nodes, volumes) {
  const shown = inOrder(nodes).slice(0, NODES_MAX);
  const byNode = Map.groupBy(volumes, (volume) => volume.node);
  const byZone = Map.groupBy(shown, (node) => node.zone);
  const zones = [...byZone.entries()].sort(([one], [other]) => one.localeCompare(other));
  const away = nodes.filter((node) => node.state !== "up").length;
  const more = nodes.length > shown.length ? `, the first ${shown.length} shown` : "";
  say(byId("map-sum"), `${nodes.length} nodes in ${new Set(nodes.map((node) => node.zone)).size} zones, ${nodes.length - away} up${more}`);
  const names = zones.map(([zone]) => zone);
  sync(byId("zones"), names, (zone) => zone, (zone) =>
    make("li", { class: "zone", "data-zone": zone }, make("h3", {}, zone ? printable(zone) : "no zone"), make("ul", { class: "nodes" })),
  );
  zones.forEach(([, members], index) => {
    const list = byId("zones").children[index].querySelector(".nodes");
    sync(list, members.map((node) => ({ node, volumes: troubledFirst(byNode.get(node.name) ?? []) })), (each) => each.node.id, nodeCard);
  });
}
