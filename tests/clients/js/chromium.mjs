// Chromium's own EventSource and fetch, on a blank page of the gateway's origin.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { chromium } from "playwright-core";

import { common, eachCut, given, over, report } from "./support.mjs";

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const BLANK = `<!doctype html><html lang="en"><meta charset="utf-8"><title>test</title><link rel="icon" href="data:,">`;

const profile = await mkdtemp(join(tmpdir(), "rawstream-chromium-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: given.chromium,
  headless: true,
  args: FLAGS,
});
await context.route("**/__blank__", (route) => route.fulfill({ contentType: "text/html; charset=utf-8", body: BLANK }));

/** A client that runs `script` on a page of the origin that it is given. */
const inPage = (script, more = {}) => async (url, asked) => {
  const page = await context.newPage();
  try {
    await page.goto(`${url}/__blank__`);
    return await page.evaluate(script, { ...asked, ...more });
  } finally {
    await page.close();
  }
};

/** In the page: an EventSource until there is enough of what `until` names, or (it `knows`) an end, or it is closed. */
function listen({ model, user, until = {}, knows = false }) {
  const query = new URLSearchParams({ prompt: "hello", model, user });
  const source = new EventSource(`/stream?${query}`);
  const seen = { text: "", again: "", messages: 0, opens: 0, errors: [], ids: [], told: [], done: 0, closed: false };
  return new Promise((resolve) => {
    let fresh = false;
    const look = () => {
      seen.closed = source.readyState === EventSource.CLOSED;
      const wanted = Object.entries(until);
      const enough = wanted.length > 0 && wanted.every(([name, least]) => (seen[name].length ?? seen[name]) >= least);
      if (seen.closed || enough || (knows && seen.done)) {
        source.close();
        resolve(seen);
      }
    };
    source.onopen = () => {
      seen.opens += 1;
      fresh = true;
      look();
    };
    source.onmessage = ({ data, lastEventId }) => {
      seen.messages += 1;
      if (fresh && lastEventId) seen.ids.push(lastEventId);
      fresh = false;
      if (data === "[DONE]") seen.done += 1;
      else {
        const said = JSON.parse(data);
        if (said.error) seen.told.push(said);
        else if (seen.opens > 1) seen.again += said.token;
        else seen.text += said.token;
      }
      look();
    };
    source.onerror = (event) => {
      seen.errors.push({ state: source.readyState, code: event.status ?? null, message: event.message ?? null });
      look();
    };
  });
}

/** In the page: fetch and read to the end, or for so many reads. Events are cut at blank lines, as pages do it. */
async function read({ path, model, user, reads = Infinity }) {
  const seen = { status: 0, type: null, body: null, text: "", reads: 0 };
  Object.assign(seen, { empty: 0, told: [], done: 0, ended: false, error: null });
  const controller = new AbortController();
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ prompt: "hello", model, user }),
      signal: controller.signal,
    });
    Object.assign(seen, { status: response.status, type: response.headers.get("content-type") });
    if (!response.ok) {
      seen.body = await response.json();
      return seen;
    }
    // Not through a TextDecoderStream: an error on the way in takes with it what was not read yet.
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const { done, value: bytes } = await reader.read();
      const value = decoder.decode(bytes, { stream: !done });
      if (done) {
        seen.ended = true;
        return seen;
      }
      seen.reads += 1;
      if (path === "/text") seen.text += value;
      else {
        const events = (rest + value).split("\n\n");
        rest = events.pop();
        for (const event of events) {
          if (!event.startsWith("data: ")) seen.empty += 1;
          else if (event === "data: [DONE]") seen.done += 1;
          else {
            const said = JSON.parse(event.slice(6));
            if (said.error) seen.told.push(said);
            else seen.text += said.token;
          }
        }
      }
      if (seen.reads >= reads) controller.abort();
    }
  } catch ({ name, message }) {
    seen.error = { name, message };
    return seen;
  }
}

const again = inPage(listen, { until: { again: 1 } });
const whole = inPage(listen, { knows: true });
const eventSource = {
  ...common(inPage(listen), inPage(listen, { until: { opens: 2 } })),
  cancel: (asked) => over({}, inPage(listen, { until: { messages: 5 } }), asked),
  cut: (asked) => eachCut((cut) => over({ cut, times: 1 }, again, asked)),
  "ended early": (asked) => over({ cut: "clean", times: 1 }, again, asked),
  "comes back": (asked) => eachCut((cut) => over({ cut, times: 2 }, whole, asked)),
  heartbeats: (asked) => over({}, whole, asked),
  "non-ASCII": (asked) => over({}, whole, asked),
};

const fetching = (path) => ({
  ...common(inPage(read, { path })),
  cancel: (asked) => over({}, inPage(read, { path, reads: 5 }), asked),
});

const named = (client, behaviours) =>
  Object.fromEntries(Object.entries(behaviours).map(([name, behaviour]) => [`${client}: ${name}`, behaviour]));

const behaviours = {
  ...named("EventSource", eventSource),
  ...named("fetch /chat", fetching("/chat")),
  ...named("fetch /text", fetching("/text")),
};
await report(["playwright-core"], behaviours, {
  atOnce: 2,
  last: async () => {
    const browser = context.browser()?.version() ?? null;
    await context.close();
    await rm(profile, { recursive: true, force: true, maxRetries: 5 });
    return { browser };
  },
});
