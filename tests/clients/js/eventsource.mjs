// `eventsource` from npm: the WHATWG EventSource for Node, against GET /stream.
import { EventSource } from "eventsource";

import { CUTS, given, line, report, until } from "./support.mjs";

/**
 * Listen until `enough(seen)`, then close. With `done`, as a page would do it that knows the terminal event: close
 * when it comes. Otherwise the client does what the specification makes it do.
 */
async function listen(url, { model, user }, { enough = ({ closed }) => closed, knows = false } = {}) {
  const query = new URLSearchParams({ prompt: "hello", model, user });
  const source = new EventSource(`${url}/stream?${query}`);
  const seen = { text: "", messages: 0, opens: 0, errors: [], ids: [], told: [], done: 0, closed: false };
  let fresh = false;
  source.addEventListener("open", () => {
    seen.opens += 1;
    fresh = true;
  });
  source.addEventListener("message", (event) => {
    seen.messages += 1;
    if (event.lastEventId && fresh) seen.ids.push(event.lastEventId);
    fresh = false;
    if (event.data === "[DONE]") {
      seen.done += 1;
      if (knows) source.close();
      return;
    }
    const said = JSON.parse(event.data);
    if (said.error) seen.told.push(said);
    else seen.text += said.token;
  });
  source.addEventListener("error", ({ code, message }) => {
    seen.errors.push({ state: source.readyState, code: code ?? null, message: message ?? null });
    seen.closed = source.readyState === EventSource.CLOSED;
  });
  try {
    await until(() => enough(seen) || (knows && seen.done), "enough was seen", 15_000);
  } finally {
    source.close();
  }
  return seen;
}

await report(["eventsource"], {
  "full stream": async (asked) => {
    const watched = await line();
    return { ...(await listen(watched.url, asked)), requests: watched.requests, answers: watched.answers };
  },
  cancel: (asked) => listen(given.url, asked, { enough: ({ messages }) => messages >= 5 }),
  "error before": async (asked) => {
    const watched = await line();
    return { ...(await listen(watched.url, asked)), requests: watched.requests.length };
  },
  "error after": async (asked) => {
    const watched = await line();
    const seen = await listen(watched.url, asked, { enough: ({ errors, opens }) => errors.length && opens === 2 });
    return { ...seen, requests: watched.requests };
  },
  cut: async (asked) => {
    const seen = {};
    const one = async (cut) => {
      const cutting = await line({ cut, times: 1 });
      const enough = ({ opens, messages }) => opens === 2 && messages > 12;
      seen[cut] = { ...(await listen(cutting.url, asked, { enough })), requests: cutting.requests };
    };
    await Promise.all(CUTS.map(one));
    return seen;
  },
  heartbeats: async (asked) => {
    const watched = await line();
    return { ...(await listen(watched.url, asked, { knows: true })), heartbeats: watched.heartbeats };
  },
  "non-ASCII": (asked) => listen(given.url, asked, { knows: true }),
});
