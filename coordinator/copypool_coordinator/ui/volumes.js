// What map and pools both say of a volume.

import { bar, badge } from "./dom.js";

export const FULL = 0.9;

// Share of the volume's disk that is taken, as its node said last; null: its node has not said yet.
export const fill = (volume) => (volume.total_bytes > 0 ? 1 - volume.free_bytes / volume.total_bytes : null);

export const percent = (ratio) => (ratio === null ? "not heard" : `${Math.round(ratio * 100)} %`);

export function fillBar(volume) {
  const ratio = fill(volume);
  return bar(ratio, ratio !== null && ratio >= FULL ? "warn" : "plain", `${volume.name}: disk taken`);
}

const ACCESS_TONE = { readwrite: "ok", readonly: "warn", unavailable: "warn", destroyed: "bad", offsite: "idle" };

// Its access mode, and what a process wants of it.
export const accessBadge = (volume) =>
  badge(volume.intent ? "warn" : ACCESS_TONE[volume.access], volume.intent ? `${volume.access}, ${volume.intent}` : volume.access);

// What is wrong first, then by name: who looks at three in the morning does not scroll.
const troubled = (volume) => !volume.reachable || volume.damaged > 0 || volume.access !== "readwrite" || volume.intent !== "";

export const troubledFirst = (volumes) =>
  volumes.toSorted((one, other) => troubled(other) - troubled(one) || one.name.localeCompare(other.name, "en", { numeric: true }));

export const reachBadge = (volume) =>
  badge(volume.reachable ? "ok" : volume.access === "offsite" ? "idle" : "bad", volume.reachable ? "reachable" : "not reachable");
