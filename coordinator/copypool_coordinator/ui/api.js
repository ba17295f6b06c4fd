// What the page asks coordinators, with the token in a header. The token is kept by this tab alone, and never in a URL.

const KEY = "copypool-token";
const DEADLINE_MS = 8_000; // status itself waits up to 3.5 s for etcd
const SILENT_MS = 25_000; // a stream says at least every 10 s that it lives

let token = "";

// An answer of the coordinator that says no, or `code` "unreachable".
export class Refused extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export function remembered() {
  token = sessionStorage.getItem(KEY) ?? "";
  return token !== "";
}

export function signIn(text) {
  token = text;
}

export function keep() {
  sessionStorage.setItem(KEY, token);
}

export function forget() {
  token = "";
  sessionStorage.removeItem(KEY);
}

async function send(path, options, signal) {
  let response;
  try {
    response = await fetch(path, {
      ...options,
      headers: { ...options.headers, Authorization: `Bearer ${token}` },
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal,
    });
  } catch (error) {
    throw new Refused("unreachable", `the coordinator does not answer (${error.name === "TimeoutError" ? "no answer in time" : "no connection"})`);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Refused(body.code ?? `http_${response.status}`, body.message ?? `HTTP status ${response.status}`);
}

// One verb, as the command line asks it.
export async function ask(verb, body = {}) {
  const options = { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", Accept: "application/json" } };
  const response = await send(`../rpc/${verb}`, options, AbortSignal.timeout(DEADLINE_MS));
  try {
    // A version is a number that JavaScript's numbers cannot hold: it is shown as it came.
    return JSON.parse(await response.text(), (key, value, context) => (key === "version" ? context?.source ?? value : value));
  } catch {
    throw new Refused("unreachable", "the coordinator's answer was cut off");
  }
}

// Events as they come: `take(kind, content)` for each, until the stream ends. `last`: id of the newest that is known.
export async function follow(last, take, signal) {
  const quiet = new AbortController();
  let timer = 0;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => quiet.abort(), SILENT_MS);
  };
  heard();
  try {
    const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
    const response = await send("events", { headers }, AbortSignal.any([signal, quiet.signal]));
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      take("alive", {});
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const fields = Object.fromEntries(block.split("\n").filter((line) => !line.startsWith(":")).map((line) => line.split(/: (.*)/s)));
        if (fields.data) take(fields.event, JSON.parse(fields.data));
      }
    }
  } catch (error) {
    if (error instanceof Refused) throw error;
    throw new Refused("unreachable", "the stream of events was cut");
  } finally {
    clearTimeout(timer);
  }
}
