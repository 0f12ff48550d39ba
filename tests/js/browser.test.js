// Chromium: the parser, and the React hook with real tokens and real frames. The times are printed; counts are promised.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import test from "node:test";

import { launch, openPage } from "./browser.js";
import { answerTo, debug, LIVE, settledTokens, untilNoStream, without } from "./live.js";
import { CORPUS, until } from "./support.js";

const there = process.env.RAWSTREAM_CHROMIUM || existsSync("/usr/bin/chromium");
const skip = without || (there ? false : "Chromium is not here");
const opened = async () => (await debug()).totals.opened;

test("in Chromium", { skip }, async (t) => {
  const context = await launch(t);

  await t.test("the parser gives the corpus' events, however the bytes are split", async () => {
    const page = await openPage(context, LIVE);
    const cases = CORPUS.filter(({ fail }) => !fail).map((one) => ({ ...one, bytes: [...one.bytes] }));
    const wrong = await page.evaluate(async (all) => {
      const { SseParser } = await import("/__test__/lab/client.js");
      const parse = (...parts) => {
        const parser = new SseParser();
        const events = parts.flatMap((part) => parser.feed(Uint8Array.from(part)));
        return JSON.stringify(events.map(({ type, data, id }) => ({ type, data, lastEventId: id })));
      };
      const found = [];
      for (const { name, bytes, events } of all) {
        const expected = JSON.stringify(events);
        const splits = bytes.map((_, at) => [bytes.slice(0, at), bytes.slice(at)]);
        for (const parts of [[bytes], bytes.map((byte) => [byte]), ...splits]) {
          if (parse(...parts) !== expected) found.push([name, parts.length, parts[0].length]);
        }
      }
      return found;
    }, cases);
    assert.deepEqual(wrong, []);
    assert.equal(cases.length, 27);
    await page.close();
  });

  await t.test("2,000 tokens a second for four seconds: all arrive, in no more commits than frames", async () => {
    const page = await openPage(context, LIVE);
    const mock = { tokens: 8000, tokens_per_second: 2000 };
    const result = await page.evaluate(
      async (body) => {
        const hook = await import("/__test__/hook.js");
        hook.mountProbe({ url: "/chat", body });
        while (hook.chat() === null) await new Promise(requestAnimationFrame);
        return hook.measure("hello");
      },
      { mock },
    );
    const { gaps, frames, commits } = result;
    const sorted = gaps.toSorted((a, b) => a - b);
    const at = (share) => sorted[Math.floor(sorted.length * share)].toFixed(1);
    t.diagnostic(
      `${frames} frames, ${commits} commits; between frames: ` +
        `median ${at(0.5)} ms, p95 ${at(0.95)} ms, most ${at(0.9999)} ms`,
    );
    assert.deepEqual([result.status, result.tokens], ["done", 8000]);
    assert.equal(result.shown, await answerTo("hello", mock));
    // Where no frame comes for a quarter of a second, on a machine that has better to do, a timer stands in for it.
    const pauses = gaps.filter((gap) => gap > 240).length;
    assert.ok(commits <= frames + pauses, `${commits} commits in ${frames} frames`);
    assert.deepEqual(page.errors, []);
    await page.close();
  });

  await t.test("a source without a pace of its own keeps to the screen's, and the page stays alive", async () => {
    const page = await openPage(context, LIVE);
    const result = await page.evaluate(
      async (body) => {
        const hook = await import("/__test__/hook.js");
        hook.mountProbe({ url: "/chat", body });
        while (hook.chat() === null) await new Promise(requestAnimationFrame);
        return hook.measure("hello");
      },
      { mock: { tokens: 20_000, tokens_per_second: null } },
    );
    t.diagnostic(`20,000 tokens at once: ${result.frames} frames, ${result.commits} commits`);
    assert.equal(result.tokens, 20_000);
    assert.ok(result.frames >= 3, "frames were drawn meanwhile");
    await page.close();
  });

  const endless = { mock: { tokens: null, tokens_per_second: 500 } };
  for (const leave of ["stop", "unmount", "close"]) {
    await t.test(`${leave} closes the source`, async () => {
      const page = await openPage(context, LIVE);
      await page.evaluate(async (body) => {
        const hook = await import("/__test__/hook.js");
        hook.mountProbe({ url: "/chat", body });
        while (hook.chat() === null) await new Promise(requestAnimationFrame);
        hook.chat().send("hello");
        while (hook.chat().tokens < 20) await new Promise(requestAnimationFrame);
      }, endless);
      assert.equal((await debug()).totals.streams, 1);
      if (leave === "close") await page.close();
      else
        await page.evaluate(async (how) => {
          const hook = await import("/__test__/hook.js");
          if (how === "stop") hook.chat().stop();
          else hook.unmount();
        }, leave);
      t.diagnostic(`${leave}: the source was closed ${await untilNoStream()} ms later`);
      if (leave !== "close") await page.close();
      assert.deepEqual(page.errors, []);
    });
  }

  await t.test("StrictMode mounts everything twice, and one stream reaches the server", async () => {
    const page = await openPage(context, LIVE, "development");
    const before = await opened();
    await page.evaluate(async (body) => {
      const hook = await import("/__test__/hook.js");
      hook.mountStrict({ url: "/chat", prompt: "hello", body });
    }, endless);
    await page.waitForFunction(() => document.querySelector("[aria-live]")?.textContent.length > 100);
    const live = await debug();
    assert.deepEqual([live.totals.streams, live.totals.opened - before], [1, 1]);
    await page.getByRole("button", { name: "Stop" }).press("Enter");
    await page.getByRole("status").filter({ hasText: "Stopped" }).waitFor();
    await untilNoStream();
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Stop", "the focus stays");
    assert.deepEqual(page.errors, []);
    await page.close();
  });

  await t.test(
    "a page that stops reading holds the source at its credit; without one, the browser takes on and on",
    async () => {
      for (const credit of [32, undefined]) {
        const page = await openPage(context, LIVE);
        await page.evaluate(
          async (more) => {
            const { streamChat } = await import("/__test__/lab/client.js");
            const body = { mock: { tokens: null, tokens_per_second: null } };
            const iterator = streamChat({ url: "/chat", prompt: "hello", body, ...more })[Symbol.asyncIterator]();
            for (let taken = 0; taken < 100; taken++) await iterator.next();
            globalThis.held = iterator;
          },
          { credit },
        );
        const made = async () => (await debug()).streams[0]?.tokens ?? 0;
        await until(async () => (await made()) >= 100, "the stream is open");
        if (credit) {
          const ahead = (await settledTokens()) - 100;
          t.diagnostic(`credit ${credit}: the source is ${ahead} tokens ahead of the page`);
          assert.ok(ahead >= 0 && ahead <= credit, `${ahead} tokens`);
        } else {
          // Chromium was seen to buffer some 60 MB of an answer that its page does not read; this much will do here.
          await until(async () => (await made()) > 100_000, "the source runs far ahead of the page", 20_000);
        }
        await page.close();
        await untilNoStream();
      }
    },
  );
});
