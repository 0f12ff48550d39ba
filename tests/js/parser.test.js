// The parser against the Web Platform Tests' corpus, in Node. browser.test.js does the same in Chromium.
import assert from "node:assert/strict";
import test from "node:test";

import { SseParser, streamChat } from "../../rawstream/lab/page/client.js";
import { bytes, CORPUS, failureOf, scripted } from "./support.js";

const streams = CORPUS.filter((one) => !one.fail);

function parse(...parts) {
  const parser = new SseParser();
  const events = parts.flatMap((part) => parser.feed(part));
  return { parser, events: events.map(({ type, data, id }) => ({ type, data, lastEventId: id })) };
}

for (const { name, bytes: whole, events } of streams) {
  test(`${name}: the same events, however the bytes are split`, () => {
    assert.deepEqual(parse(whole).events, events);
    assert.deepEqual(parse(...Array.from(whole, (byte) => Uint8Array.of(byte))).events, events, "byte by byte");
    for (let at = 0; at <= whole.length; at++) {
      assert.deepEqual(parse(whole.subarray(0, at), whole.subarray(at)).events, events, `split at ${at}`);
    }
  });
}

test("the reconnection time is what the corpus says", () => {
  for (const { name, bytes: whole, retry } of streams.filter((one) => typeof one.retry === "number")) {
    if (!/retry/.test(name)) continue;
    assert.equal(parse(whole).parser.retry, retry, name);
  }
});

test("what is not an event stream is refused, and not asked for again", async () => {
  for (const { mime, bytes: whole } of CORPUS.filter((one) => one.fail)) {
    const { fetch, calls } = scripted({ headers: { "content-type": mime }, chunks: [whole] });
    const error = await failureOf(streamChat({ url: "http://x/chat", fetch }).run());
    assert.equal(error.code, "not_a_stream", mime);
    assert.equal(calls.length, 1);
    assert.ok(calls[0].left, "its connection is closed");
  }
});

test("a line end is one as soon as it is there: a CR is not kept back to see whether an LF follows", () => {
  const parser = new SseParser();
  assert.equal(parser.feed(bytes("data: a\r\r")).length, 1);
  assert.deepEqual(
    parser.feed(bytes("\ndata: b\n\n")).map(({ data }) => data),
    ["b"],
  );
});

test("bytes that are not UTF-8 become U+FFFD, also where they are cut", () => {
  const broken = Uint8Array.from([...bytes("data: x"), 0xe2, 0x82, ...bytes("y\n\n")]);
  for (let at = 0; at <= broken.length; at++) {
    const { events } = parse(broken.subarray(0, at), broken.subarray(at));
    assert.deepEqual(
      events.map(({ data }) => data),
      ["x\ufffdy"],
    );
  }
});

test("an event without end is refused at the bound, in one line or in many, and dripped or at once", () => {
  for (const part of ["x".repeat(100), "data: xxxxxxxx\n", "event: yyyyyyyyyyyyyyyyyyyyyyyyy"]) {
    const parser = new SseParser({ maxEvent: 1000 });
    assert.throws(
      () => {
        parser.feed(bytes("data: "));
        for (let i = 0; i < 1000; i++) parser.feed(bytes(part));
      },
      { code: "event_too_long" },
      part,
    );
  }
  assert.equal(new SseParser({ maxEvent: 1000 }).feed(bytes(`data: ${"x".repeat(1000)}\n\n`)).length, 1);
});
