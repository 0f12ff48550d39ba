// streamChat, batchByFrame and ChatClient, against a scripted server.
import assert from "node:assert/strict";
import test from "node:test";

import { batchByFrame, ChatClient, streamChat } from "../../rawstream/lab/page/client.js";
import { bytes, DONE, failureOf, scripted, token, until } from "./support.js";

const AT = "http://127.0.0.1/chat";
const quick = { attempts: 2, base: 1, most: 1 };

function ask(script, options = {}) {
  return streamChat({ url: AT, prompt: "hello", fetch: script.fetch, retry: quick, ...options });
}

async function texts(stream) {
  const found = [];
  for await (const { text } of stream) found.push(text);
  return found;
}

// --- demand ---------------------------------------------------------------------------------------------------------

test("nothing is sent before the first demand, and each demand reads no more than it needs", async () => {
  const script = scripted({ chunks: [token("a") + token("b"), token("c"), token("d"), DONE] });
  const stream = ask(script);
  const iterator = stream[Symbol.asyncIterator]();
  assert.equal(script.calls.length, 0);
  const reads = [];
  for (let step = await iterator.next(); !step.done; step = await iterator.next()) {
    await new Promise((resolve) => setImmediate(resolve)); // a reader that reads ahead would do it now
    reads.push([step.value.text, script.calls[0].reads]);
  }
  assert.deepEqual(reads, [
    ["a", 1],
    ["b", 1],
    ["c", 2],
    ["d", 3],
  ]);
  assert.equal(stream.state, "done");
});

test("the request is a POST with the prompt, or the messages, and the body's other fields", async () => {
  const script = scripted({ chunks: [DONE] });
  await ask(script, { body: { max_tokens: 5 }, headers: { authorization: "Bearer k" } }).run();
  await ask(script, { prompt: undefined, messages: [{ role: "user", content: "hi" }] }).run();
  await ask(script, { url: "http://127.0.0.1/v1/chat/completions", body: { model: "m" } }).run();
  await ask(script, { url: "http://127.0.0.1/stream", method: "GET", body: { mock: { tokens: 5 } }, credit: 7 }).run();
  const [plain, talk, openai, get] = script.calls;
  assert.equal(plain.init.method, "POST");
  assert.equal(plain.headers.get("content-type"), "application/json");
  assert.equal(plain.headers.get("authorization"), "Bearer k");
  assert.deepEqual(plain.body, { max_tokens: 5, prompt: "hello" });
  assert.deepEqual(talk.body, { messages: [{ role: "user", content: "hi" }] });
  assert.deepEqual(openai.body, { model: "m", stream: true, messages: [{ role: "user", content: "hello" }] });
  assert.equal(get.url, "http://127.0.0.1/stream?credit=7&mock=%7B%22tokens%22%3A5%7D&prompt=hello");
  assert.equal(get.init.body, undefined);
});

test("/chat, /stream, OpenAI's chunks, the AI SDK's messages and plain text all become text", async () => {
  const openai = (delta, finish = null) =>
    `data: ${JSON.stringify({ choices: [{ index: 0, delta, finish_reason: finish }] })}\n\n`;
  const dialects = {
    chat: [token("Hé"), token("llo"), DONE],
    stream: ["retry: 1\nid: s.1\n", token("Hé"), "id: s.2\n", token("llo"), "id: s.end\n", DONE],
    openai: [
      openai({ role: "assistant", content: "" }),
      openai({ content: "Hé" }),
      openai({ content: "llo" }),
      openai({}, "stop"),
      'data: {"choices":[],"usage":{"total_tokens":2}}\n\n',
      DONE,
    ],
    ui: [
      'data: {"type":"start"}\n\n',
      'data: {"type":"text-delta","id":"t1","delta":"Héllo"}\n\n',
      'data: {"type":"finish","finishReason":"stop"}\n\n',
      DONE,
    ],
  };
  for (const [name, chunks] of Object.entries(dialects)) {
    const whole = bytes(chunks.join(""));
    const dripped = Array.from(whole, (byte) => Uint8Array.of(byte));
    assert.equal(await ask(scripted({ chunks: dripped })).run(), "Héllo", name);
  }
  const plain = Array.from(bytes("Héllo"), (byte) => Uint8Array.of(byte));
  const headers = { "content-type": "text/plain; charset=utf-8" };
  assert.deepEqual(await texts(ask(scripted({ headers, chunks: plain }))), ["H", "é", "l", "l", "o"]);
});

// --- ends -----------------------------------------------------------------------------------------------------------

test("an error in the stream is thrown, with its code, and what came before it was given", async () => {
  const shapes = [
    'data: {"error":"the upstream said nothing","code":"upstream_idle"}\n\n',
    'data: {"error":{"message":"the upstream said nothing","type":"server_error","code":"upstream_idle"}}\n\n',
  ];
  for (const shape of shapes) {
    const script = scripted({ chunks: [token("a"), shape, DONE] });
    const seen = [];
    const stream = ask(script, { onEvent: ({ text }) => seen.push(text) });
    const error = await failureOf(stream.run());
    assert.deepEqual(
      [error.name, error.code, error.message],
      ["StreamError", "upstream_idle", "the upstream said nothing"],
    );
    assert.deepEqual(seen, ["a"]);
    assert.equal(stream.state, "failed");
    assert.ok(script.calls[0].left, "the connection is closed");
    assert.equal(script.calls.length, 1, "and nothing is asked again");
  }
});

test("an end without the terminal event is an error, cleanly framed or not", async () => {
  for (const chunks of [[token("a")], [token("a"), "cut"], [token("a"), "data: [DO"]]) {
    const script = scripted({ chunks });
    const error = await failureOf(ask(script).run());
    assert.equal(error.code, "cut");
    assert.equal(script.calls.length, 1, "after a token, the question is not asked again");
  }
});

test("a clean end behind a finish reason is an end, as some servers leave [DONE] out", async () => {
  const last = 'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"length"}]}\n\n';
  const stream = ask(scripted({ chunks: [last] }));
  assert.equal(await stream.run(), "a");
  assert.equal(stream.finishReason, "length");
  assert.equal((await failureOf(ask(scripted({ chunks: [last, "cut"] })).run())).code, "cut");
});

test("an answer that the server ended early is whole, and says so, in each dialect", async () => {
  const why = {
    chat: 'data: {"finish_reason": "length", "code": "insufficient_quota"}\n\n',
    openai: 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}],"rawstream":{"reason":"x"}}\n\n',
    ui: 'data: {"type":"finish","finishReason":"length","messageMetadata":{"reason":"insufficient_quota"}}\n\n',
  };
  for (const [name, last] of Object.entries(why)) {
    const stream = ask(scripted({ chunks: [token("a"), last, DONE] }));
    assert.equal(await stream.run(), "a", name);
    assert.equal(stream.finishReason, "length", name);
  }
});

test("an event that makes no sense is reported, and the stream goes on", async () => {
  const chunks = [
    token("a"),
    "data: {broken\n\n",
    'data: {"token": 5}\n\n',
    'data: {"new":"thing"}\n\n',
    token("b"),
    DONE,
  ];
  const reported = [];
  const given = await texts(ask(scripted({ chunks }), { onMalformed: ({ raw }) => reported.push(raw) }));
  assert.deepEqual(reported, ["{broken", '{"token": 5}']);
  assert.deepEqual(given, ["a", "", "b"], "what is only unknown is handed on, without text");
});

test("what follows the terminal event is dropped", async () => {
  assert.deepEqual(await texts(ask(scripted({ chunks: [token("a") + DONE + token("b")] }))), ["a"]);
});

test("leaving the loop closes the connection", async () => {
  const script = scripted({ chunks: [token("a"), token("b"), "hang"] });
  const stream = ask(script);
  for await (const event of stream) if (event.text === "b") break;
  assert.ok(script.calls[0].left);
  assert.equal(stream.state, "stopped");
});

test("cancel() ends a wait quietly; an aborted signal throws its reason, before and while it streams", async () => {
  const script = scripted({ chunks: [token("a"), "hang"] });
  const stream = ask(script);
  const all = texts(stream);
  await until(() => script.calls[0]?.reads === 2);
  stream.cancel();
  assert.deepEqual(await all, ["a"]);
  assert.ok(script.calls[0].left);

  const controller = new AbortController();
  const second = ask(script, { signal: controller.signal });
  const failed = failureOf(second.run());
  await until(() => script.calls[1]?.reads === 2);
  controller.abort(new Error("navigated away"));
  assert.equal((await failed).message, "navigated away");
  assert.deepEqual([second.state, script.calls[1].left], ["stopped", true]);

  assert.equal((await failureOf(ask(script, { signal: AbortSignal.abort() }).run())).name, "AbortError");
  assert.equal(script.calls.length, 2, "nothing is sent for a signal that was aborted already");
});

test("an iterator's return() does not wait for a next() that waits for the network", async () => {
  const script = scripted({ chunks: ["hang"] });
  const iterator = ask(script)[Symbol.asyncIterator]();
  const waiting = iterator.next();
  await until(() => script.calls[0]?.reads === 1);
  await iterator.return();
  assert.equal((await waiting).done, true);
});

test("silence ends the stream, and heartbeats are not silence", async () => {
  const silent = await failureOf(ask(scripted({ chunks: [token("a"), "hang"] }), { timeout: 20 }).run());
  assert.equal(silent.code, "idle");
  const beating = Array.from({ length: 20 }, () => ": hb\n\n");
  assert.equal(await ask(scripted({ chunks: [...beating, token("a"), DONE] }), { timeout: 2000 }).run(), "a");
});

// --- repetition -----------------------------------------------------------------------------------------------------

test("before the first byte, a failure is tried again after a pause; the callers are told", async () => {
  const script = scripted(
    new TypeError("refused"),
    { status: 503, headers: { "retry-after": "0" } },
    { chunks: [token("a"), DONE] },
  );
  const retries = [];
  assert.equal(await ask(script, { onRetry: (retry) => retries.push(retry) }).run(), "a");
  assert.deepEqual(
    retries.map(({ attempt, error }) => [attempt, error.code]),
    [
      [1, "unreachable"],
      [2, "http_503"],
    ],
  );
  assert.equal(script.calls.length, 3);
});

test("the pauses are random, up to a bound that doubles", async () => {
  const delays = Array.from({ length: 4 }, () => []);
  for (let i = 0; i < 30; i++) {
    const retry = { attempts: 4, base: 0.5, most: 2 };
    const onRetry = ({ attempt, delay }) => delays[attempt - 1].push(delay);
    await failureOf(ask(scripted(new TypeError("refused")), { retry, onRetry }).run());
  }
  for (const [index, bound] of [0.5, 1, 2, 2].entries()) {
    assert.ok(Math.max(...delays[index]) <= bound);
    assert.ok(new Set(delays[index]).size > 25, "no two alike");
  }
});

test("a refusal is an error with status, code and the time to come back; one that is final is not repeated", async () => {
  const body = JSON.stringify({ error: "slow down", code: "too_many" });
  const later = scripted({ status: 429, headers: { "retry-after": "120" }, chunks: [body] });
  const error = await failureOf(ask(later).run());
  assert.deepEqual(
    [error.message, error.code, error.status, error.retryAfter, error.retryable],
    ["slow down", "too_many", 429, 120, true],
  );
  assert.equal(later.calls.length, 1, "two minutes are told, not waited for");
  const finals = [
    { status: 400 },
    { status: 503, headers: { "x-should-retry": "false" } },
    { status: 404, chunks: ["<html>"] },
  ];
  for (const final of finals) {
    const script = scripted(final);
    assert.equal((await failureOf(ask(script).run())).code, `http_${final.status}`);
    assert.equal(script.calls.length, 1);
  }
  const never = scripted(new TypeError("refused"));
  await failureOf(ask(never, { retry: false }).run());
  assert.equal(never.calls.length, 1);
});

test("a stream that resumes goes on behind its last id, and only where the caller said that the server can", async () => {
  const part = (number, text) => `id: s.${number}\n${token(text)}`;
  const answers = [
    { chunks: [part(1, "a"), part(2, "b"), "id: s.3\ndata: {", "cut"] },
    { chunks: [part(3, "c"), "id: s.end\n" + DONE] },
  ];
  const script = scripted(...answers);
  assert.equal(await ask(script, { resume: true }).run(), "abc");
  assert.deepEqual(
    script.calls.map(({ headers }) => headers.get("last-event-id")),
    [null, "s.2"],
  );
  assert.equal((await failureOf(ask(scripted(...answers)).run())).code, "cut");

  const anew = scripted(answers[0], { chunks: ["id: t.1\n" + token("a"), DONE] });
  assert.equal((await failureOf(ask(anew, { resume: true }).run())).code, "not_resumed");

  const over = scripted(answers[0], { status: 204 });
  assert.equal(await ask(over, { resume: true }).run(), "ab", "204 says that there is nothing more");
  const reloaded = scripted({ chunks: [DONE] });
  await ask(reloaded, { lastEventId: "…" }).run();
  assert.equal(reloaded.calls[0].headers.get("last-event-id"), "â\u0080¦", "an id travels as UTF-8");
});

test("an answer whose ids are the server's own resumes by itself, a bounded number of times", async () => {
  const own = { headers: { "x-stream-id": "s" } };
  const part = (number, text) => `id: s.${number}\n${token(text)}`;
  const answers = [
    { ...own, chunks: [part(1, "a"), "cut"] },
    { ...own, chunks: [part(2, "b"), "cut"] },
    { ...own, chunks: [part(3, "c"), "id: s.end\n" + DONE] },
  ];
  const script = scripted(...answers);
  const retries = [];
  const stream = ask(script, { retry: { base: 1, most: 1 }, onRetry: ({ attempt }) => retries.push(attempt) });
  assert.equal(await stream.run(), "abc");
  assert.deepEqual(
    script.calls.map(({ headers }) => headers.get("last-event-id")),
    [null, "s.1", "s.2"],
  );
  assert.deepEqual([stream.resumed, retries], [2, [1, 1]]);
  assert.equal((await failureOf(ask(scripted(...answers), { resume: false }).run())).code, "cut");

  const lost = scripted(answers[0], new TypeError("no network"));
  assert.equal((await failureOf(ask(lost, { retry: { base: 1, most: 1 } }).run())).code, "unreachable");
  assert.equal(lost.calls.length, 1 + 8);
  const gone = scripted(answers[0], { status: 410, chunks: ['{"error":"gone","code":"replay_gone"}'] });
  assert.equal((await failureOf(ask(gone).run())).code, "replay_gone");
  assert.equal(gone.calls.length, 2);
});

test("who leaves an answer that can be resumed stops it: it would wait for him", async () => {
  const script = scripted({ headers: { "x-stream-id": "s" }, chunks: [`id: s.1\n${token("a")}`, "hang"] }, {});
  const stream = ask(script, { headers: { authorization: "Bearer k" } });
  for await (const { text } of stream) if (text === "a") break;
  assert.equal(stream.state, "stopped");
  assert.equal(script.calls.length, 2);
  const [, stop] = script.calls;
  assert.deepEqual([stop.url, stop.init.method], ["http://127.0.0.1/streams/s/stop", "POST"]);
  assert.equal(stop.headers.get("authorization"), "Bearer k");
});

// --- signals --------------------------------------------------------------------------------------------------------

test("a signal goes beside the stream as JSON, wherever the server is mounted; a refusal says why", async () => {
  for (const [path, root] of [
    ["/chat", "/"],
    ["/llm/stream", "/llm/"],
    ["/v1/chat/completions", "/"],
    ["/llm/v1/chat/completions", "/llm/"],
    ["/api/chat", "/"],
    ["/myapi/chat", "/myapi/"],
  ]) {
    const told = [];
    const script = scripted({ chunks: [token("a"), token("b"), DONE] });
    const answers = [new Response("{}", { status: 202 }), Response.json({ error: "full", code: "too_many_signals" }, { status: 429 })];
    const fetch = async (url, init) => {
      if (!url.endsWith("/signal")) return script.fetch(url, init);
      told.push([url, init.method, new Headers(init.headers).get("content-type"), init.body]);
      return answers.shift();
    };
    const stream = ask({ fetch }, { url: `http://127.0.0.1${path}`, headers: { authorization: "Bearer k" } });
    assert.equal((await failureOf(stream.signal(1))).code, "misuse");
    for await (const { text } of stream) {
      if (text !== "a") continue;
      await stream.signal({ steer: "é" });
      const refused = await failureOf(stream.signal(null));
      assert.deepEqual([refused.code, refused.status, refused.retryable], ["too_many_signals", 429, true]);
    }
    const at = `http://127.0.0.1${root}streams/s1/signal`;
    assert.deepEqual(told, [
      [at, "POST", "application/json", '{"steer":"é"}'],
      [at, "POST", "application/json", "null"],
    ]);
  }
});

// --- credit ---------------------------------------------------------------------------------------------------------

test("what was consumed is told, one request at a time, the newest number each time", async () => {
  const told = [];
  const held = [];
  const script = scripted({ chunks: [...Array.from({ length: 12 }, () => token("x")), DONE] });
  const fetch = async (url, init) => {
    if (!String(url).includes("credit?") && !String(url).endsWith("/credit")) return script.fetch(url, init);
    told.push([new URL(url).pathname, JSON.parse(init.body).consumed]);
    await new Promise((resolve) => held.push(resolve));
    return new Response(null, { status: 204 });
  };
  const stream = ask({ fetch }, { credit: 4 });
  let taken = 0;
  for await (const { text } of stream) {
    if (text) taken += 1;
    if (taken === 1) assert.equal(told.length, 0, "a token that was only just handed out is not consumed");
    if (taken === 3) assert.deepEqual(told, [["/streams/s1/credit", 2]], "half of the credit at a time");
    if (taken === 8) {
      assert.equal(told.length, 1, "one at a time");
      held.shift()();
      await until(() => told.length === 2);
      assert.equal(told[1][1], 7);
    }
  }
  assert.match(script.calls[0].url, /credit=4$/);
  for (const release of held) release();
});

test("credit that cannot be told ends the stream, which would wait for ever; a stream that is over may be gone", async () => {
  for (const [status, expected] of [
    [500, "credit_failed"],
    [404, null],
  ]) {
    const script = scripted({ chunks: [token("a"), token("b"), ...(status === 404 ? [DONE] : ["hang"])] });
    const fetch = async (url, init) =>
      String(url).endsWith("/credit") ? new Response("", { status }) : script.fetch(url, init);
    const end = ask({ fetch }, { credit: 1 }).run();
    if (expected) assert.equal((await failureOf(end)).code, expected);
    else assert.equal(await end, "ab");
  }
});

// --- frames ---------------------------------------------------------------------------------------------------------

/** A page whose frames come when the test says so. */
function fakePage(t, { hidden = false } = {}) {
  const frames = new Map();
  const listeners = new Set();
  let number = 0;
  globalThis.document = {
    hidden,
    addEventListener: (_, listener) => listeners.add(listener),
    removeEventListener: (_, listener) => listeners.delete(listener),
  };
  globalThis.requestAnimationFrame = (callback) => (frames.set(++number, callback), number);
  globalThis.cancelAnimationFrame = (handle) => frames.delete(handle);
  t.after(() => {
    delete globalThis.document;
    delete globalThis.requestAnimationFrame;
    delete globalThis.cancelAnimationFrame;
  });
  const frame = () => {
    const due = [...frames.values()];
    frames.clear();
    for (const callback of due) callback(0);
  };
  const hide = () => {
    globalThis.document.hidden = true;
    for (const listener of [...listeners]) listener();
  };
  return { frame, hide, frames, listeners };
}

test("a batch is called once per frame, however much was pushed, and not at all for nothing", (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { frame, frames, listeners } = fakePage(t);
  const batches = [];
  const push = batchByFrame((items) => batches.push(items));
  for (let i = 0; i < 1000; i++) push(i);
  assert.equal(batches.length, 0);
  frame();
  assert.deepEqual(
    batches.map((items) => items.length),
    [1000],
  );
  frame();
  t.mock.timers.tick(10_000);
  assert.equal(batches.length, 1);
  push(1);
  push.cancel();
  frame();
  assert.equal(batches.length, 1, "cancelled");
  push(2);
  push.flush();
  frame();
  assert.deepEqual(batches.at(-1), [2], "flushed once");
  assert.deepEqual([frames.size, listeners.size], [0, 0], "nothing is left behind");
});

test("without frames, a batch is flushed by a timer: hidden from the start, hidden meanwhile, or just covered", (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const batches = [];
  const push = batchByFrame((items) => batches.push(items));
  const page = fakePage(t);
  push("hidden meanwhile");
  page.hide();
  assert.equal(batches.length, 1);
  push("hidden");
  assert.equal(page.frames.size, 0);
  t.mock.timers.tick(250);
  assert.equal(batches.length, 2);
  globalThis.document.hidden = false;
  push("covered: no frame comes");
  t.mock.timers.tick(250);
  assert.equal(batches.length, 3);
});

// --- ChatClient -----------------------------------------------------------------------------------------------------

function chat(script, options = {}) {
  return new ChatClient({ url: AT, fetch: script.fetch, retry: quick, ...options });
}

test("a chat sends, and ends with the whole text; its listeners hear less often than tokens come", async () => {
  const chunks = [Array.from({ length: 500 }, () => token("x")).join(""), DONE];
  const client = chat(scripted({ chunks }));
  let told = 0;
  const unsubscribe = client.subscribe(() => (told += 1));
  assert.equal(client.state.status, "idle");
  const sending = client.send("hello");
  assert.deepEqual([client.getSnapshot().status, client.isStreaming], ["connecting", true]);
  const last = await sending;
  assert.deepEqual([last.status, last.text.length, last.tokens, last.streamId], ["done", 500, 500, "s1"]);
  await until(() => client.getSnapshot() === client.state);
  assert.ok(told <= 5, `${told} times`);
  unsubscribe();
});

test("a new send aborts the one before, whose promise ends as stopped", async () => {
  const script = scripted({ chunks: [token("old"), "hang"] }, { chunks: [token("new"), DONE] });
  const client = chat(script);
  const first = client.send("one");
  await until(() => client.state.text === "old");
  const second = client.send("two");
  assert.ok(script.calls[0].left);
  assert.equal((await first).status, "stopped");
  assert.deepEqual([(await second).status, client.state.text], ["done", "new"]);
});

test("what is sent and taken back in the same breath is never sent", async () => {
  const script = scripted({ chunks: [token("a"), DONE] });
  const client = chat(script);
  const first = client.send("one");
  client.stop();
  const second = client.send("two");
  assert.deepEqual([(await first).status, (await second).status], ["stopped", "done"]);
  assert.deepEqual(
    script.calls.map(({ body }) => body.prompt),
    ["two"],
  );
});

test("stop keeps what has come; regenerate asks the same again; a failure is a state, not a rejection", async () => {
  const script = scripted(
    { chunks: [token("half"), "hang"] },
    { chunks: [token("whole"), DONE] },
    { chunks: ['data: {"error":"broke","code":"source_failed"}\n\n'] },
  );
  const client = chat(script);
  assert.equal(client.regenerate(), null);
  client.stop();
  const first = client.send({ prompt: "hello", body: { seed: 1 } });
  await until(() => client.state.text === "half");
  client.stop();
  assert.deepEqual([(await first).status, (await first).text, (await first).error], ["stopped", "half", null]);
  assert.deepEqual([(await client.regenerate()).text, script.calls[1].body], ["whole", script.calls[0].body]);
  const failed = await client.regenerate();
  assert.deepEqual([failed.status, failed.error.code, failed.text], ["failed", "source_failed", ""]);
});

test("while the server is away, the state says so and when it is asked again", async () => {
  const client = chat(scripted(new TypeError("refused")), { retry: { attempts: 1, base: 60_000, most: 60_000 } });
  const sending = client.send("hello");
  await until(() => client.state.status === "retrying");
  assert.deepEqual([client.state.retry.attempt, client.state.retry.error.code], [1, "unreachable"]);
  client.stop();
  assert.equal((await sending).status, "stopped", "a pause can be left at once");
});

test("a conversation goes with each prompt, and regenerating leaves the last answer out", async () => {
  const script = scripted(
    { chunks: [token("A"), DONE] },
    { chunks: [token("B"), DONE] },
    { chunks: [token("C"), DONE] },
  );
  const client = chat(script, { history: true });
  await client.send("one");
  await client.send("two");
  await client.regenerate();
  const said = (...contents) => contents.map((content, i) => ({ role: i % 2 ? "assistant" : "user", content }));
  assert.deepEqual(
    script.calls.map(({ body }) => body),
    [{ messages: said("one") }, { messages: said("one", "A", "two") }, { messages: said("one", "A", "two") }],
  );
  assert.deepEqual(client.state.messages, said("one", "A", "two", "C"));
});
