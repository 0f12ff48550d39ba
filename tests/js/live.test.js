// The client in Node, against a real server.
import assert from "node:assert/strict";
import test from "node:test";

import { ChatClient, streamChat } from "../../rawstream/lab/page/client.js";
import { answerTo, debug, LIVE, settledTokens, untilNoStream, without } from "./live.js";
import { failureOf } from "./support.js";

const full = { tokens_per_second: null };

test("every dialect of the server gives the same text", { skip: without }, async () => {
  const mock = { ...full, tokens: 300 };
  const expected = await answerTo("hello", mock);
  for (const [path, more] of Object.entries({
    chat: {},
    stream: { method: "GET" },
    text: {},
    "v1/chat/completions": {},
  })) {
    const body = path.startsWith("v1") ? { mock, model: "m" } : { mock };
    const stream = streamChat({ url: `${LIVE}/${path}`, prompt: "hello", body, ...more });
    assert.equal(await stream.run(), expected, path);
    assert.equal(stream.state, "done");
    assert.match(stream.id, /^[0-9a-f]{32}$/);
  }
});

test("a failure in mid-stream, and a refusal, are errors with the server's codes", { skip: without }, async () => {
  const failing = { url: `${LIVE}/chat`, prompt: "hello", body: { mock: { ...full, tokens: 20, fail_after: 3 } } };
  assert.equal((await failureOf(streamChat(failing).run())).code, "source_failed");
  const refused = await failureOf(streamChat({ ...failing, body: { mock: { what: 1 } } }).run());
  assert.deepEqual([refused.status, refused.code], [400, "bad_request"]);
});

test("who leaves, stops the source: by leaving the loop, by cancel(), by a signal", { skip: without }, async () => {
  const endless = { url: `${LIVE}/chat`, prompt: "hello", body: { mock: { tokens: null, tokens_per_second: 100 } } };
  for await (const { text } of streamChat(endless)) if (text) break;
  await untilNoStream();
  const stream = streamChat(endless);
  for await (const { text } of stream) if (text) stream.cancel();
  await untilNoStream();
  const controller = new AbortController();
  const onEvent = () => controller.abort();
  assert.equal(
    (await failureOf(streamChat({ ...endless, signal: controller.signal, onEvent }).run())).name,
    "AbortError",
  );
  await untilNoStream();
  const client = new ChatClient(endless);
  const { totals } = await debug();
  const sending = client.send("hello");
  client.stop();
  assert.equal((await sending).status, "stopped");
  await untilNoStream();
  assert.equal((await debug()).totals.opened, totals.opened, "what is taken back at once never reaches the server");
});

test("with credit the source runs no further ahead than that, though it could", { skip: without }, async (t) => {
  for (const credit of [1, 16]) {
    const options = { url: `${LIVE}/chat`, prompt: "hello", credit, body: { mock: { ...full, tokens: null } } };
    const iterator = streamChat(options)[Symbol.asyncIterator]();
    for (let taken = 0; taken < 50; taken++) await iterator.next();
    const made = await settledTokens();
    t.diagnostic(`credit ${credit}: 50 tokens taken, ${made} made`);
    assert.ok(made >= 50 && made <= 50 + credit, `${made} tokens`);
    await iterator.return();
    await untilNoStream();
  }
});

test("a whole answer comes through with credit, whatever its length", { skip: without }, async () => {
  for (const credit of [1, 7, 1000]) {
    const mock = { ...full, tokens: 500 };
    const stream = streamChat({ url: `${LIVE}/chat`, prompt: "hello", credit, body: { mock } });
    assert.equal(await stream.run(), await answerTo("hello", mock));
  }
});
