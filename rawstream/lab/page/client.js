/**
 * The browser's half of rawstream: one file, no dependencies, for browsers, workers and Node 18 and newer.
 *
 *     import { streamChat } from "./client.js";
 *     for await (const event of streamChat({ url: "/chat", prompt: "hello" })) show(event.text);
 *
 * Rule 1: nothing is read ahead of the consumer. One demand makes at most one read() at a time; the events of what
 *         was read wait in the parser's one chunk. What the browser itself buffers is bounded by `credit` alone.
 * Rule 2: an answer ends well in one way, its terminal event. An error told in the stream, a cut, and an end without
 *         the terminal event are thrown; an event that makes no sense is reported, and the stream goes on.
 * Rule 3: a request is repeated only while no byte of its answer has come, or to resume behind an event id.
 * Rule 4: whoever stops listening closes the connection, which is what stops the generation; one that would wait for
 *         him to come back is stopped in so many words.
 *
 * Durations are milliseconds, except `retryAfter`, which is seconds as in HTTP.
 */

const MAX_EVENT = 1024 * 1024; // characters, as the server's own parser has it
const MAX_REFUSAL = 64 * 1024;
const SILENCE = 120_000; // a server that is alive sends a heartbeat long before
const LONGEST_RETRY_AFTER = 60; // seconds; a user is told instead of kept waiting any longer
const RESUMES = 8; // in a row without an event: with the pauses between them about what a server waits (30 s)
const FRAME_BUDGET = 8; // half of a frame at 60 Hz: the other half is layout's and paint's
const HIDDEN_FLUSH = 250; // where no frames come

/** An answer that failed, or was refused. See client.d.ts for the codes. */
export class StreamError extends Error {
  constructor(message, { code = "stream_failed", status = null, retryAfter = null, retryable = false, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "StreamError";
    this.code = code;
    this.status = status;
    this.retryAfter = retryAfter;
    this.retryable = retryable;
  }
}

// --- server-sent events (WHATWG HTML, section 9.2) ------------------------------------------------------------------

/** Bytes in, events out, however the bytes were split. `lastEventId` is what a reconnect would send. */
export class SseParser {
  #decoder = new TextDecoder(); // drops one byte order mark, as the specification has it
  #tail = ""; // the unfinished line
  #data = ""; // the data lines of the event under way, each closed by LF: empty exactly when there was none
  #type = "";
  #id;
  #afterCr = false;

  constructor({ maxEvent = MAX_EVENT, lastEventId = "" } = {}) {
    this.maxEvent = maxEvent;
    this.lastEventId = this.#id = lastEventId;
    this.retry = null;
  }

  /** Take a Uint8Array, give the events it finishes: `{type, data, id}`. Throws StreamError `event_too_long`. */
  feed(bytes) {
    const events = [];
    const text = this.#decoder.decode(bytes, { stream: true });
    if (text === "") return events;
    let start = this.#afterCr && text[0] === "\n" ? 1 : 0;
    let lf = text.indexOf("\n", start);
    let cr = text.indexOf("\r", start);
    while (lf >= 0 || cr >= 0) {
      const end = cr < 0 || (lf >= 0 && lf < cr) ? lf : cr;
      const line = this.#tail + text.slice(start, end);
      this.#tail = "";
      this.#line(line, events);
      start = end + (end === cr && lf === cr + 1 ? 2 : 1);
      if (lf >= 0 && lf < start) lf = text.indexOf("\n", start);
      if (cr >= 0 && cr < start) cr = text.indexOf("\r", start);
    }
    this.#afterCr = text.endsWith("\r");
    this.#tail += text.slice(start);
    this.#check(this.#tail.length);
    return events;
  }

  #line(line, events) {
    if (line === "") {
      this.lastEventId = this.#id;
      if (this.#data) events.push({ type: this.#type || "message", data: this.#data.slice(0, -1), id: this.#id });
      this.#data = this.#type = "";
      return;
    }
    this.#check(line.length);
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") this.#data += value + "\n";
    else if (name === "event") this.#type = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^[0-9]{1,15}$/.test(value)) this.retry = Number(value);
  }

  #check(more) {
    if (this.#data.length + more > this.maxEvent + "data: ".length) {
      this.#data = this.#tail = "";
      throw new StreamError(`an event is longer than ${this.maxEvent} characters`, { code: "event_too_long" });
    }
  }
}

// --- what an event says ---------------------------------------------------------------------------------------------

/** The event of one `{type, data, id}`; `done` with the terminal one, `malformed` (why) where it makes no sense.
 *  Understands /chat, /stream, OpenAI's chunks and the AI SDK's UI messages. Throws StreamError for a failure. */
export function readEvent({ type, data: raw, id }) {
  const event = { text: "", data: null, raw, type, id, finishReason: null, done: raw === "[DONE]", malformed: null };
  if (event.done) return event;
  let data;
  try {
    data = event.data = JSON.parse(raw);
  } catch (error) {
    event.malformed = `not JSON: ${error.message}`;
    return event;
  }
  if (data === null || typeof data !== "object") return event;
  if (data.error) throw failure(data.error, data.code);
  if (data.type === "error") throw failure(data.errorText);
  if ("token" in data) event.text = data.token;
  else if (Array.isArray(data.choices)) {
    const choice = data.choices.find((one) => (one?.index ?? 0) === 0);
    event.text = choice?.delta?.content ?? choice?.message?.content ?? choice?.text ?? "";
    event.finishReason = choice?.finish_reason ?? null;
  } else if (data.type === "text-delta") event.text = data.delta;
  else if (data.type === "finish") event.finishReason = data.finishReason ?? "stop";
  else if (typeof data.finish_reason === "string") event.finishReason = data.finish_reason; // /chat, /stream: ended early
  if (typeof event.text !== "string") {
    event.malformed = `its text is a ${typeof event.text}`;
    event.text = "";
  }
  return event;
}

function failure(error, code, more = {}) {
  const [message, inner] = typeof error === "object" && error ? [error.message, error.code ?? error.type] : [error];
  const said = code ?? inner;
  return new StreamError(typeof message === "string" && message ? message.slice(0, 500) : "the server failed", {
    ...more,
    code: said ? String(said) : more.code,
  });
}

async function refusal(response) {
  const { status, headers } = response;
  const more = { status, code: `http_${status}`, retryAfter: retryAfter(headers) };
  const should = headers.get("x-should-retry");
  more.retryable = should ? should === "true" : [408, 425, 429].includes(status) || status >= 500;
  const reader = response.body?.getReader();
  const decoder = new TextDecoder();
  let text = "";
  try {
    for (let step = await reader?.read(); step && !step.done && text.length < MAX_REFUSAL; step = await reader.read()) {
      text += decoder.decode(step.value, { stream: true });
    }
    const { error, code } = JSON.parse(text);
    if (error) return failure(error, code, more);
  } catch (error) {
    more.cause = error; // its body says nothing that we could show; the status does
  } finally {
    reader?.cancel().catch(() => {}); // all we wanted of it is here
  }
  return new StreamError(`the server answered with status ${status}`, more);
}

function retryAfter(headers) {
  const ms = parseFloat(headers.get("retry-after-ms"));
  if (ms >= 0) return ms / 1000;
  const value = headers.get("retry-after");
  if (value === null) return null;
  const seconds = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isNaN(seconds) ? null : Math.max(0, seconds);
}

// --- one answer -----------------------------------------------------------------------------------------------------

/** Does this event count as a token for the server, though its text is not of choice 0? */
function isToken(data) {
  const choices = data?.choices;
  if (!Array.isArray(choices)) return false;
  const said = choices.find((choice) => (choice?.index ?? 0) === 0) ?? choices[0];
  return Boolean(said?.delta?.content);
}


/** Ask `options.url`, and iterate over the events of the answer. Nothing is sent before the first demand. */
export function streamChat(options) {
  return new ChatStream(options);
}

class ChatStream {
  state = "idle";
  id = null; // x-stream-id: whoever has it may stop the stream
  requestId = null;
  tokens = 0; // events with text, handed out
  resumed = 0; // times that the answer went on after its connection was lost
  finishReason = null;
  lastEventId;
  #options;
  #retry;
  #base; // of the backoff; a server's `retry:` changes it
  #failures = 0;
  #arrived = false; // a byte of the answer is here
  #iterator = null;
  #attempt = null; // the AbortController of the request under way
  #reader = null;
  #plain = false;
  #at = null; // where the answer came from
  #cancelled = false;
  #wake = null;
  #credit = null;

  constructor(options) {
    const { retry } = options;
    this.#options = { timeout: SILENCE, fetch: globalThis.fetch, ...options };
    const given = retry === undefined ? {} : typeof retry === "object" ? retry : { attempts: Number(retry) };
    this.#retry = { attempts: 2, resumes: given.attempts ?? RESUMES, base: 500, most: 10_000, ...given };
    this.#base = this.#retry.base;
    this.lastEventId = options.lastEventId ?? "";
  }

  /** An answer comes once: every call gives the same iterator. */
  [Symbol.asyncIterator]() {
    if (this.#iterator === null) {
      const events = this.#events();
      this.#iterator = {
        next: () => events.next(),
        // A return() waits for a next() that is under way, and that one for the network: so cut it off first.
        return: (value) => (this.cancel(), events.return(value)),
        [Symbol.asyncIterator]: () => this.#iterator,
      };
    }
    return this.#iterator;
  }

  /** Take the whole answer, for the sake of `onEvent` or of its text. */
  async run() {
    const parts = [];
    for await (const { text } of this) parts.push(text);
    return parts.join("");
  }

  /** Leave: the connection is closed, and the iteration ends without an error. */
  cancel() {
    if (["done", "failed"].includes(this.state)) return;
    this.#cancelled = true;
    this.state = "stopped";
    this.#stop();
    this.#leave();
  }

  /** Tell the answer's source something, beside the stream: any JSON. Resolves when it waits for the source. */
  async signal(value) {
    if (this.id === null) throw new StreamError("no stream has begun that could be signalled", { code: "misuse" });
    const { fetch, credentials } = this.#options;
    const headers = new Headers(this.#options.headers);
    headers.set("content-type", "application/json");
    const init = { method: "POST", headers, body: JSON.stringify(value), ...(credentials && { credentials }) };
    let response;
    try {
      response = await fetch(this.#beside("signal"), init);
    } catch (cause) {
      throw new StreamError("the server cannot be reached", { code: "unreachable", retryable: true, cause });
    }
    if (!response.ok) throw await refusal(response);
    await response.body?.cancel();
  }

  /** `/streams/{id}/…` of the server that answers, which may be mounted below a path. */
  #beside(what) {
    const root = this.#at.pathname.replace(/\/(?:v1\/chat\/completions|api\/chat|[^/]*)$/, "/");
    return new URL(`${root}streams/${encodeURIComponent(this.id)}/${what}`, this.#at).href;
  }

  async *#events() {
    const { signal } = this.#options;
    const aborted = () => (this.#stop(), this.#leave());
    signal?.addEventListener("abort", aborted);
    try {
      for (;;) {
        try {
          if (this.#cancelled) return;
          signal?.throwIfAborted();
          if (await this.#open()) yield* this.#plain ? this.#texts() : this.#messages();
          if (!this.#cancelled) this.state = "done";
          return;
        } catch (error) {
          if (this.#cancelled) return;
          signal?.throwIfAborted();
          if (!this.#mayRepeat(error)) throw error;
          await this.#pause(error);
        }
      }
    } catch (error) {
      this.state = signal?.aborted ? "stopped" : "failed";
      throw error;
    } finally {
      signal?.removeEventListener("abort", aborted);
      if (!["done", "failed"].includes(this.state)) this.state = "stopped";
      if (this.state === "done") this.#goodbye();
      else this.#leave();
      this.#credit?.end();
    }
  }

  async *#messages() {
    const { maxEvent, onEvent, onMalformed } = this.#options;
    const resumed = this.#arrived && this.lastEventId;
    const parser = new SseParser({ maxEvent, lastEventId: this.lastEventId });
    for (let bytes = await this.#read(); bytes; bytes = await this.#read()) {
      for (const message of parser.feed(bytes)) {
        if (resumed && elsewhere(resumed, message.id)) {
          throw new StreamError("the server began another answer instead of resuming", { code: "not_resumed" });
        }
        const event = readEvent(message);
        if (resumed && this.#failures > 0) this.resumed += 1;
        this.lastEventId = message.id;
        this.#failures = 0;
        if (event.done) return;
        this.finishReason = event.finishReason ?? this.finishReason;
        if (event.malformed !== null) {
          onMalformed?.(event);
          continue;
        }
        if (event.text) this.tokens += 1;
        onEvent?.(event);
        yield event;
        if (this.#cancelled) return;
        if (event.text || isToken(event.data)) this.#credit?.consumed();
      }
      this.lastEventId = parser.lastEventId;
      this.#base = parser.retry ?? this.#base;
    }
    // Some servers say how the answer ended and leave out [DONE]; a clean end after that is an end.
    if (this.finishReason === null) throw this.#cut();
  }

  async *#texts() {
    const decoder = new TextDecoder();
    for (let last = false; !last; ) {
      const bytes = await this.#read();
      last = bytes === null;
      const text = last ? decoder.decode() : decoder.decode(bytes, { stream: true });
      if (text === "") continue;
      this.tokens += 1;
      const event = { text, data: null, raw: text, type: "text", id: "", finishReason: null };
      this.#options.onEvent?.(event);
      yield event;
      if (this.#cancelled) return;
    }
  }

  /** Send the request; false: the answer is that there is nothing (more) to stream. */
  async #open() {
    const { credit, creditUrl, fetch, onOpen } = this.#options;
    this.state = "connecting";
    const attempt = (this.#attempt = new AbortController());
    const { url, ...init } = request(this.#options, this.lastEventId);
    let response;
    try {
      response = await this.#inTime(fetch(url, { ...init, signal: attempt.signal }));
    } catch (error) {
      throw this.#why(error, "unreachable", "the server cannot be reached");
    }
    if (response.status !== 200 && response.status !== 204) throw await this.#inTime(refusal(response));
    this.id = response.headers.get("x-stream-id");
    this.requestId = response.headers.get("x-request-id");
    this.#at = new URL(response.url || url, globalThis.location?.href);
    const type = (response.headers.get("content-type") ?? "").split(";")[0].trim().toLowerCase();
    this.#plain = type === "text/plain";
    if (response.status === 200 && !this.#plain && type !== "text/event-stream") {
      throw new StreamError(`not a stream, but ${type || "of no type"}`, { code: "not_a_stream", status: 200 });
    }
    if (credit && this.#plain) throw new StreamError("plain text has no tokens to give credit for", { code: "misuse" });
    this.#reader = response.body?.getReader() ?? null;
    this.state = "streaming";
    if (credit && this.id) {
      this.#credit?.end();
      this.#credit = new Credit(creditUrl ?? this.#beside("credit"), credit, this.#options, (error) => attempt.abort(error));
    }
    onOpen?.(this);
    return response.status === 200 && this.#reader !== null;
  }

  /** The next bytes; null at the clean end. */
  async #read() {
    try {
      const { done, value } = await this.#inTime(this.#reader.read());
      if (done) return null;
      this.#arrived = true;
      return value;
    } catch (error) {
      throw this.#why(error, "cut", "the connection broke before the end of the answer");
    }
  }

  async #inTime(promise) {
    const { timeout } = this.#options;
    if (!timeout) return promise;
    const attempt = this.#attempt;
    const silent = new StreamError(`nothing came for ${timeout / 1000} s`, { code: "idle", retryable: true });
    const timer = setTimeout(() => attempt.abort(silent), timeout);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
    }
  }

  #why(error, code, message) {
    const reason = this.#attempt.signal.reason;
    if (reason instanceof StreamError) return reason;
    return new StreamError(message, { code, retryable: true, cause: error });
  }

  #cut() {
    return new StreamError("the answer ended without its terminal event", { code: "cut", retryable: true });
  }

  #mayRepeat(error) {
    if (!(error instanceof StreamError) || !error.retryable) return false;
    if ((error.retryAfter ?? 0) > LONGEST_RETRY_AFTER) return false;
    if (!this.#arrived) return this.#failures < this.#retry.attempts;
    return this.#resumable() && this.#failures < this.#retry.resumes;
  }

  /** Does the server keep this answer for who comes back? Its own ids say so, or the caller. */
  #resumable() {
    const { resume } = this.#options;
    if (this.lastEventId === "" || resume === false) return false;
    return resume === true || (this.id !== null && this.lastEventId.startsWith(`${this.id}.`));
  }

  /** Nobody comes back: an answer that can be resumed would wait for us, and be paid for. */
  #stop() {
    if (!this.#resumable() || this.id === null || this.lastEventId.endsWith(".end")) return;
    const { fetch, credentials } = this.#options;
    const headers = new Headers(this.#options.headers);
    headers.set("content-type", "application/json");
    const init = { method: "POST", headers, body: "{}", keepalive: true, ...(credentials && { credentials }) };
    // Whether it arrives or not: the server's grace ends it in the end.
    Promise.resolve(fetch(this.#beside("stop"), init)).then((response) => response.body?.cancel(), () => {});
  }

  /** Full jitter, so that a thousand tabs that lost the same server do not come back in step. */
  async #pause(error) {
    this.#leave();
    this.state = "retrying";
    const longest = Math.min(this.#retry.most, this.#base * 2 ** this.#failures);
    const delay = (error.retryAfter ?? 0) * 1000 + Math.random() * longest;
    this.#failures += 1;
    this.#options.onRetry?.({ attempt: this.#failures, delay, error });
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, delay);
      this.#wake = () => (clearTimeout(timer), resolve());
    });
    this.#wake = null;
  }

  #leave() {
    this.#reader = null;
    this.#attempt?.abort();
    this.#wake?.();
  }

  /** Read the framing's end, which comes with the terminal event, so that the connection can be used again. */
  async #goodbye() {
    const attempt = this.#attempt;
    const timer = setTimeout(() => attempt.abort(), 1000);
    try {
      while (this.#reader && !(await this.#reader.read()).done);
    } catch {
      // The answer is whole; how its connection ends concerns nobody.
    } finally {
      clearTimeout(timer);
    }
  }
}

function request({ url, method, prompt, messages, body, headers, credit, credentials }, lastEventId) {
  const absolute = new URL(url, globalThis.location?.href);
  if (credit) absolute.searchParams.set("credit", credit);
  const all = new Headers(headers);
  // A header is bytes, and this one is UTF-8; fetch takes them as characters up to 255.
  if (lastEventId) all.set("last-event-id", String.fromCharCode(...new TextEncoder().encode(lastEventId)));
  all.set("accept", "text/event-stream, text/plain;q=0.5");
  const fields = { ...body };
  if (absolute.pathname.endsWith("/chat/completions")) {
    fields.stream = true;
    if (prompt !== undefined) messages ??= [{ role: "user", content: prompt }];
    prompt = undefined;
  }
  if (messages !== undefined) fields.messages = messages;
  else if (prompt !== undefined) fields.prompt = prompt;
  method ??= Object.keys(fields).length ? "POST" : "GET";
  const init = { method, headers: all, cache: "no-store", ...(credentials && { credentials }) };
  if (method === "GET") {
    for (const [name, value] of Object.entries(fields)) {
      absolute.searchParams.set(name, typeof value === "string" ? value : JSON.stringify(value));
    }
  } else {
    all.set("content-type", "application/json");
    init.body = JSON.stringify(fields);
  }
  return { url: absolute.href, ...init };
}

/** Whether two ids of the form `<stream>.<n>` are of two streams. */
function elsewhere(before, now) {
  const stream = (id) => /^(.+)\.(?:\d+|end)$/.exec(id)?.[1];
  return stream(before) !== undefined && stream(now) !== undefined && stream(before) !== stream(now);
}

/** Tells the server how many tokens were consumed. One request at a time; it says the newest number. */
class Credit {
  #count = 0;
  #told = 0;
  #busy = false;
  #over = false;

  constructor(url, ahead, { fetch, headers, credentials }, fail) {
    Object.assign(this, { url, fetch, headers, credentials, fail });
    this.step = Math.ceil(ahead / 2); // as TCP's window updates: half of it may be unsaid, and nobody waits
  }

  consumed() {
    this.#count += 1;
    if (!this.#busy && this.#count - this.#told >= this.step) this.#tell();
  }

  end() {
    this.#over = true;
  }

  async #tell() {
    this.#busy = true;
    const headers = new Headers(this.headers);
    headers.set("content-type", "application/json");
    const { fetch, credentials } = this;
    for (let failures = 0; !this.#over && this.#count - this.#told >= this.step; ) {
      const consumed = this.#count;
      try {
        const body = JSON.stringify({ consumed });
        const init = { method: "POST", headers, body, ...(credentials && { credentials }) };
        const response = await fetch(this.url, init);
        await response.body?.cancel();
        if (response.status === 404)
          this.end(); // the stream is over; what is left of it is on its way
        else if (!response.ok) throw new StreamError(`status ${response.status}`, { status: response.status });
        this.#told = consumed;
        failures = 0;
      } catch (cause) {
        if (++failures > 4) {
          this.end();
          this.fail(new StreamError("the credit cannot be told", { code: "credit_failed", cause }));
          break;
        }
        await new Promise((resolve) => setTimeout(resolve, Math.random() * 200 * 2 ** failures));
      }
    }
    this.#busy = false;
  }
}

// --- at the pace of the screen --------------------------------------------------------------------------------------

/** Call `callback(items)` once per frame, with everything pushed since; by a timer where no frames come. */
export function batchByFrame(callback) {
  let items = [];
  let forget = null;
  const flush = () => {
    forget?.();
    forget = null;
    if (items.length === 0) return;
    const batch = items;
    items = [];
    callback(batch);
  };
  const push = (item) => {
    items.push(item);
    forget ??= onFrame(flush);
  };
  const cancel = () => {
    forget?.();
    forget = null;
    items = [];
  };
  return Object.assign(push, { flush, cancel });
}

/** Call back at the next frame, or when the tab is hidden meanwhile, or after a while. Returns what undoes it. */
function onFrame(callback) {
  const page = globalThis.document;
  const frames = typeof globalThis.requestAnimationFrame === "function" && !page?.hidden;
  const frame = frames ? requestAnimationFrame(callback) : null;
  // A window that is covered, or a frame off screen, gets no frames and is not "hidden" either.
  const timer = setTimeout(callback, frames || page ? HIDDEN_FLUSH : 16);
  if (frames) page?.addEventListener("visibilitychange", callback, { once: true });
  return () => {
    if (frame !== null) cancelAnimationFrame(frame);
    clearTimeout(timer);
    page?.removeEventListener("visibilitychange", callback);
  };
}

const nextFrame = () =>
  new Promise((resolve) => {
    const forget = onFrame(() => (forget(), resolve()));
  });

/** A chat box without its looks: sends, stops, regenerates, and tells its listeners at most once per frame.
 *  `state` is always current; `getSnapshot()` is what was last told. */
export class ChatClient {
  #options;
  #state = Object.freeze({
    status: "idle",
    text: "",
    tokens: 0,
    messages: Object.freeze([]),
    error: null,
    retry: null,
    streamId: null,
    finishReason: null,
  });
  #shown = this.#state;
  #listeners = new Set();
  #turn = null;
  #input = null;
  #paint = batchByFrame(() => this.#publish());

  constructor(options = {}) {
    this.#options = options;
    for (const name of ["send", "stop", "regenerate", "subscribe", "getSnapshot"]) this[name] = this[name].bind(this);
  }

  /** Other options, from the next `send` on. */
  configure(options) {
    this.#options = options;
  }

  get state() {
    return this.#state;
  }

  get isStreaming() {
    return this.#turn !== null;
  }

  getSnapshot() {
    return this.#shown;
  }

  /** Call `listener()` after every change, at most once per frame while tokens come. Returns the unsubscription. */
  subscribe(listener) {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Ask: a prompt, or `{prompt, messages, body}`. Stops the answer before. Resolves to the state at its end. */
  send(input) {
    this.#end("stopped");
    this.#input = typeof input === "string" ? { prompt: input } : { ...input };
    const prompt = this.#input.prompt;
    const asked = this.#options.history && prompt !== undefined ? [{ role: "user", content: prompt }] : [];
    return this.#start([...this.#state.messages, ...asked]);
  }

  /** Ask the last question again; null when there was none. */
  regenerate() {
    if (this.#input === null) return null;
    this.#end("stopped");
    const { messages } = this.#state;
    return this.#start(messages.at(-1)?.role === "assistant" ? messages.slice(0, -1) : messages);
  }

  /** Stop the answer under way, if there is one; what has come of it stays. */
  stop() {
    this.#end("stopped", true);
  }

  async #start(messages) {
    const turn = (this.#turn = { stream: null, last: null });
    const fresh = { text: "", tokens: 0, error: null, retry: null, streamId: null, finishReason: null };
    this.#set({ ...fresh, status: "connecting", messages: Object.freeze(messages) }, true);
    // Whoever sends and takes it back at once (React's StrictMode mounts everything twice) has asked for nothing.
    await null;
    if (turn !== this.#turn) return turn.last;
    const { history, ...options } = this.#options;
    const talk = history && this.#input.messages === undefined ? { prompt: undefined, messages } : {};
    const body = { ...options.body, ...this.#input.body };
    turn.stream = streamChat({
      ...options,
      ...this.#input,
      ...talk,
      body,
      onOpen: (stream) => {
        this.#set({ status: "streaming", retry: null, streamId: stream.id });
        options.onOpen?.(stream);
      },
      onRetry: (retry) => {
        this.#set({ status: "retrying", retry });
        options.onRetry?.(retry);
      },
    });
    try {
      await this.#take(turn);
      if (turn === this.#turn) this.#end("done", false, { finishReason: turn.stream.finishReason });
    } catch (error) {
      if (turn === this.#turn) this.#end(turn.stream.state === "stopped" ? "stopped" : "failed", false, { error });
    }
    return turn.last;
  }

  async #take(turn) {
    let since = performance.now();
    for await (const { text } of turn.stream) {
      if (turn !== this.#turn) return;
      if (text) this.#set({ text: this.#state.text + text, tokens: this.#state.tokens + 1 });
      // The screen is a consumer too: a source faster than it waits for the next frame, as for any other reader.
      if (performance.now() - since > FRAME_BUDGET && !globalThis.document?.hidden) {
        await nextFrame();
        since = performance.now();
      }
    }
  }

  #end(status, now = false, more = {}) {
    const turn = this.#turn;
    if (turn === null) return;
    this.#turn = null;
    turn.stream?.cancel();
    const { text, messages } = this.#state;
    const said = this.#options.history && text ? [{ role: "assistant", content: text }] : [];
    this.#set({ ...more, status, retry: null, messages: Object.freeze([...messages, ...said]) }, now);
    turn.last = this.#state;
  }

  #set(changes, now = false) {
    this.#state = Object.freeze({ ...this.#state, ...changes });
    this.#paint(null);
    if (now) this.#paint.flush();
  }

  #publish() {
    this.#shown = this.#state;
    for (const listener of [...this.#listeners]) listener();
  }
}
