// `@microsoft/fetch-event-source`: POST /chat as an event stream. It needs a document, which happy-dom gives it.
import { Window } from "happy-dom";

import { CUTS, given, line, report, told, until, within } from "./support.mjs";

const window = new Window({ url: "http://127.0.0.1/" });
window.fetch = globalThis.fetch; // of Node: a browser's own is in the Chromium tests
Object.assign(globalThis, { window, document: window.document });
const { fetchEventSource } = await import("@microsoft/fetch-event-source");

class Fatal extends Error {}

/**
 * One conversation. `onerror` throws, as its documentation says for what is not to be tried again; with `retries` it
 * does not, and the client asks again for itself.
 */
async function converse(url, { model, user }, { watch = () => {}, retries = 0 } = {}) {
  const controller = new AbortController();
  const seen = { text: "", messages: 0, empty: 0, told: [], done: 0, closes: 0, errors: [], opens: [], rejected: null };
  const stop = () => controller.abort();
  const promise = fetchEventSource(`${url}/chat`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ prompt: "hello", model, user }),
    signal: controller.signal,
    async onopen(response) {
      seen.opens.push(response.status);
      if (response.status !== 200) throw new Fatal(`${response.status}: ${await response.text()}`);
    },
    onmessage({ data }) {
      seen.messages += 1;
      if (data === "") seen.empty += 1;
      else if (data === "[DONE]") seen.done += 1;
      else {
        const said = JSON.parse(data);
        if (said.error) seen.told.push(said);
        else seen.text += said.token;
      }
      watch(seen, stop);
    },
    onclose() {
      seen.closes += 1;
    },
    onerror(error) {
      seen.errors.push(told(error));
      if (seen.errors.length > retries) throw error;
      return 50;
    },
  });
  try {
    await within(promise, "it is over");
  } catch (error) {
    seen.rejected = told(error);
  }
  return seen;
}

await report(["@microsoft/fetch-event-source"], {
  "full stream": async (asked) => {
    const watched = await line();
    return { ...(await converse(watched.url, asked)), requests: watched.requests.length };
  },
  cancel: (asked) => converse(given.url, asked, { watch: (seen, stop) => seen.messages === 5 && stop() }),
  "error before": (asked) => converse(given.url, asked),
  "error after": (asked) => converse(given.url, asked),
  cut: async (asked) => {
    const seen = {};
    for (const cut of CUTS) seen[cut] = await converse((await line({ cut })).url, asked);
    return seen;
  },
  "asks again": async (asked) => {
    const cutting = await line({ cut: "between", times: 1 });
    const watch = (seen, stop) => seen.opens.length === 2 && seen.messages > 14 && stop();
    return { ...(await converse(cutting.url, asked, { retries: 1, watch })), requests: cutting.requests.length };
  },
  "hidden tab": async (asked) => {
    const watched = await line();
    let hidden = false;
    Object.defineProperty(document, "hidden", { get: () => hidden, configurable: true });
    const turn = (value) => {
      hidden = value;
      document.dispatchEvent(new window.Event("visibilitychange"));
    };
    let stop;
    const progress = { messages: 0, opens: [] };
    const over = converse(watched.url, asked, {
      watch: (seen, end) => {
        Object.assign(progress, { messages: seen.messages, opens: seen.opens });
        stop = end;
      },
    });
    await until(() => progress.messages >= 5, "some tokens");
    turn(true);
    turn(false);
    await until(() => progress.opens.length === 2, "it has asked again");
    await until(() => progress.messages >= 12, "tokens of the second answer");
    stop();
    return { ...(await over), requests: watched.requests.length };
  },
  heartbeats: async (asked) => {
    const watched = await line();
    return { ...(await converse(watched.url, asked)), heartbeats: watched.heartbeats };
  },
  "non-ASCII": (asked) => converse(given.url, asked),
});
