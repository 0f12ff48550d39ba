// `eventsource` from npm: the WHATWG EventSource for Node, against GET /stream.
import { EventSource } from "eventsource";

import { common, eachCut, given, over, report, until } from "./support.mjs";

/**
 * Listen until `enough(seen)`, then close. With `done`, as a page would do it that knows the terminal event: close
 * when it comes. Otherwise the client does what the specification makes it do.
 */
async function listen(url, { model, user }, { enough = ({ closed }) => closed, knows = false } = {}) {
  const query = new URLSearchParams({ prompt: "hello", model, user });
  const source = new EventSource(`${url}/stream?${query}`);
  const seen = { text: "", again: "", messages: 0, opens: 0, errors: [], ids: [], told: [], done: 0, closed: false };
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
    else if (seen.opens > 1) seen.again += said.token;
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

/** `listen` with what makes it stop, over a line. */
const stopping = (enough) => (url, asked) => listen(url, asked, { enough });
const whole = (url, asked) => listen(url, asked, { knows: true });
const again = stopping((seen) => seen.again !== "");

await report(["eventsource"], {
  ...common(listen, stopping(({ opens }) => opens === 2)),
  cancel: (asked) => listen(given.url, asked, { enough: ({ messages }) => messages >= 5 }),
  cut: (asked) => eachCut((cut) => over({ cut, times: 1 }, again, asked)),
  "ended early": (asked) => over({ cut: "clean", times: 1 }, again, asked),
  "comes back": (asked) => eachCut((cut) => over({ cut, times: 2 }, whole, asked)),
  heartbeats: (asked) => over({}, whole, asked),
  "non-ASCII": (asked) => over({}, whole, asked),
});
