// Chromium's own EventSource and fetch, on a blank page of the gateway's origin.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { chromium } from "playwright-core";

import { CUTS, given, line, report } from "./support.mjs";

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

/** What `script(argument)` gives on a page of the line's origin, and what passed on the line. */
async function on(watched, script, argument) {
  const page = await context.newPage();
  try {
    await page.goto(`${watched.url}/__blank__`);
    const seen = await page.evaluate(script, argument);
    const { requests, answers, heartbeats } = watched;
    return { ...seen, requests, answers, heartbeats };
  } finally {
    await page.close();
  }
}

/** In the page: an EventSource until there are `messages` of them, `opens`, `errors`, an end, or it is closed. */
function listen({ model, user, until = {}, knows = false }) {
  const query = new URLSearchParams({ prompt: "hello", model, user });
  const source = new EventSource(`/stream?${query}`);
  const seen = { text: "", messages: 0, opens: 0, errors: [], ids: [], told: [], done: 0, closed: false };
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
  const seen = { status: 0, type: null, body: null, text: "", empty: 0, told: [], done: 0, reads: 0, ended: false, error: null };
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
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
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

const each = async (one) => Object.fromEntries(await Promise.all(CUTS.map(async (cut) => [cut, await one(cut)])));

const eventSource = {
  "full stream": async (asked) => on(await line(), listen, asked),
  cancel: async (asked) => on(await line(), listen, { ...asked, until: { messages: 5 } }),
  "error before": async (asked) => on(await line(), listen, asked),
  "error after": async (asked) => on(await line(), listen, { ...asked, until: { opens: 2 } }),
  cut: (asked) =>
    each(async (cut) => on(await line({ cut, times: 1 }), listen, { ...asked, until: { opens: 2, messages: 14 } })),
  heartbeats: async (asked) => on(await line(), listen, { ...asked, knows: true }),
  "non-ASCII": async (asked) => on(await line(), listen, { ...asked, knows: true }),
};

const fetching = (path) => ({
  "full stream": async (asked) => on(await line(), read, { ...asked, path }),
  cancel: async (asked) => on(await line(), read, { ...asked, path, reads: 5 }),
  "error before": async (asked) => on(await line(), read, { ...asked, path }),
  "error after": async (asked) => on(await line(), read, { ...asked, path }),
  cut: (asked) => each(async (cut) => on(await line({ cut }), read, { ...asked, path })),
  heartbeats: async (asked) => on(await line(), read, { ...asked, path }),
  "non-ASCII": async (asked) => on(await line(), read, { ...asked, path }),
});

const named = (client, behaviours) =>
  Object.fromEntries(Object.entries(behaviours).map(([name, behaviour]) => [`${client}: ${name}`, behaviour]));

await report(
  ["playwright-core"],
  { ...named("EventSource", eventSource), ...named("fetch /chat", fetching("/chat")), ...named("fetch /text", fetching("/text")) },
  async () => {
    const browser = context.browser()?.version() ?? null;
    await context.close();
    await rm(profile, { recursive: true, force: true, maxRetries: 5 });
    return { browser };
  },
);
