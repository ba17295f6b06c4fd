// How values are said: the words and numbers of `copypool status` and `copypool explain`. Pure.
//
// The command line says them in Python (client/copypool/cli/output.py); tests/browser/test_words.py holds both to the
// same text, so that nobody reads two answers about one cluster.

// One decimal as Python rounds it: an exact tie, which only a quarter can be, goes to the even digit; toFixed takes the
// greater one.
function oneDecimal(value) {
  if (Math.abs(value * 4) % 2 !== 1) return value.toFixed(1);
  const floor = Math.floor(value * 10);
  return ((floor % 2 === 0 ? floor : floor + 1) / 10).toFixed(1);
}

function whole(value) {
  const floor = Math.floor(value);
  return String(value - floor === 0.5 ? (floor % 2 === 0 ? floor : floor + 1) : Math.round(value));
}

export function readableBytes(count) {
  let size = count;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (size < 1024) return unit === "B" ? `${count} B` : `${oneDecimal(size)} ${unit}`;
    size /= 1024;
  }
  return `${oneDecimal(size)} TiB`;
}

export function readableAge(seconds) {
  if (seconds < 120) return `${oneDecimal(seconds)} s`;
  return seconds < 7200 ? `${whole(seconds / 60)} min` : `${oneDecimal(seconds / 3600)} h`;
}

// UTC, to the second; "-" for never.
export function readableTime(unixS) {
  if (unixS === null || unixS === undefined) return "-";
  return new Date(Math.floor(unixS) * 1000).toISOString().replace("T", " ").replace(".000Z", "Z");
}

// A name that cannot hide anything: control, format and bidirectional characters and odd spaces are written out.
export function printable(name) {
  return Array.from(name, (character) => {
    if (character === " " || !/[\p{C}\p{Z}]/u.test(character)) return character;
    const named = { "\t": "\\t", "\n": "\\n", "\r": "\\r" }[character];
    if (named) return named;
    const code = character.codePointAt(0);
    if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
    return code < 0x10000 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
  }).join("");
}

// The first line of `copypool status`.
export function headline(status) {
  if (status.healthy && status.unverified_bytes) {
    return `OK: every live byte is where policy says; ${readableBytes(status.unverified_bytes)} are young and not read back yet`;
  }
  if (status.healthy && status.empty) return "OK: empty: nothing to prove";
  if (status.healthy) return "OK: every live byte is proven to be where policy says";
  return `NOT OK: ${status.reasons.length ? status.reasons[0] : "no reason was given"}`;
}

// How bad it is. `bad`: something cannot be read or written now, or nothing heals. `warn`: all can be read, and what is
// missing is being made again or waits for something that the reasons name.
export function tone(status) {
  if (status.healthy) return "ok";
  const unreadable = status.lost_files || status.unavailable_files || status.doubtful_files;
  const headless = status.catalog_down || !status.leader || !status.nodes.some((node) => node.state === "up");
  return unreadable || headless ? "bad" : "warn";
}

export const owed = (debt) =>
  `${readableBytes(debt.debt_bytes)} in ${debt.debt_records} records not copied, oldest ${readableAge(debt.debt_oldest_s)}`;

// The first line of `copypool explain`.
export function explained(found) {
  const name = printable(`${found.namespace}/${found.path}`);
  if (found.proven) return `${name} is where policy says, and was read back in time`;
  if (found.policy_met) return `${name} is where policy says; not all of it was read back yet, or not lately`;
  return `${name} is NOT where policy says`;
}
