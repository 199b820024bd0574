// The public API as this page uses it: JSON in, JSON out, and streams.

import { messagesOf } from "./sse.js";

const KEY = "ratchet-api-key";
const RETRY_MILLISECONDS = 2000;
const CONTROL = /[\x00-\x1f\x7f-\x9f]/;

/** The service refused; `message` is its sentence. */
export class Problem extends Error {
  constructor(status, document) {
    super(document?.detail ?? document?.message ?? `The service answered ${status}.`);
    this.status = status;
    this.code = document?.code;
  }
}

/** Nobody answers. */
export class Unreachable extends Error {}

let promptForKey = async () => null;
let pendingKey = null;
let isDeclined = false;
let isAsked = Boolean(sessionStorage.getItem(KEY));

/** `prompt` asks the person for a key, and gives it or null; after null it is not called until `askAgain`. */
export function askForKeyWith(prompt) {
  promptForKey = prompt;
}

/** The person would like to give a key after all. */
export function askAgain() {
  isDeclined = false;
}

/** Whether the service wants a key, as far as is known: `asked`, and `declined` if the person gave none. */
export function keyState() {
  return { asked: isAsked, declined: isDeclined };
}

export function getJson(path, signal) {
  return send("GET", path, { signal }).then((response) => response.json());
}

export function postJson(path, body = {}) {
  return send("POST", path, { body }).then((response) => response.json());
}

/** The messages of POST `path`, which answers with a stream. */
export async function* postStream(path, body, signal) {
  yield* messagesOf(await send("POST", path, { body, signal, accept: "text/event-stream" }));
}

/**
 * Every event of a job, in order and once, over as many connections as it takes; ends when the job's log does.
 * `onConnection(isLive)` is told when a connection is made and lost.
 */
export async function* jobEvents(jobId, signal, onConnection) {
  const position = { seq: 0, wait: RETRY_MILLISECONDS };
  while (!signal.aborted) {
    try {
      const headers = position.seq ? { "Last-Event-ID": String(position.seq) } : {};
      const response = await send("GET", `/jobs/${jobId}/events`, { signal, headers, accept: "text/event-stream" });
      if (response.status === 204) return;
      onConnection(true);
      for await (const event of newEvents(response, position)) {
        yield event;
        if (event.kind === "done") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status < 500 && error.status !== 429) throw error;
    }
    onConnection(false);
    await new Promise((resolve) => setTimeout(resolve, position.wait));
  }
}

async function* newEvents(response, position) {
  for await (const message of messagesOf(response)) {
    position.wait = message.retry ?? position.wait;
    const seq = Number(message.id) || position.seq;
    // Without a new number it is no part of the log, as the farewell of a stopping service is not.
    if (seq <= position.seq && message.event !== "done") continue;
    position.seq = seq;
    yield { seq, kind: message.event, data: JSON.parse(message.data) };
  }
}

async function send(method, path, options) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const response = await reach(method, path, options, key);
    if (response.ok) return response;
    const problem = new Problem(response.status, await response.json().catch(() => null));
    if (response.status !== 401 || !(await newKey(key))) throw problem;
  }
}

async function reach(method, path, { body, signal, headers, accept = "application/json" }, key) {
  const all = { Accept: accept, ...headers };
  if (key) all.Authorization = bearer(key);
  if (body) all["Content-Type"] = "application/json";
  try {
    return await fetch(path, { method, headers: all, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Unreachable("The service does not answer.");
  }
}

/** The key as the service reads it, in UTF-8; a header's characters are single bytes. */
function bearer(key) {
  if (CONTROL.test(key)) {
    sessionStorage.removeItem(KEY);
    throw new Problem(0, { detail: "The API key has a control character in it and cannot be sent; it is forgotten." });
  }
  return `Bearer ${String.fromCharCode(...new TextEncoder().encode(key))}`;
}

/** True if there is another key to try than the refused one. Requests that fail together share one question. */
async function newKey(refused) {
  isAsked = true;
  const now = sessionStorage.getItem(KEY);
  if (now && now !== refused) return true;
  if (isDeclined) return false;
  pendingKey ??= promptForKey().finally(() => { pendingKey = null; });
  const key = await pendingKey;
  isDeclined = !key;
  if (key) sessionStorage.setItem(KEY, key);
  return Boolean(key);
}
