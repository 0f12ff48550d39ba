// `@microsoft/fetch-event-source`: POST /chat as an event stream. It needs a document, which happy-dom gives it.
import { Window } from "happy-dom";

import { common, given, over, pass, report, told, until, within } from "./support.mjs";

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

/** A tab that is hidden and shown again in mid-stream. */
async function hideAndShow(url, asked) {
  let hidden = false;
  Object.defineProperty(document, "hidden", { get: () => hidden, configurable: true });
  const turn = (value) => {
    hidden = value;
    document.dispatchEvent(new window.Event("visibilitychange"));
  };
  const now = { messages: 0, opens: [], stop: null };
  const watch = ({ messages, opens }, stop) => Object.assign(now, { messages, opens, stop });
  const promise = converse(url, asked, { watch });
  await until(() => now.messages >= 5, "some tokens");
  turn(true);
  await pass(100); // shown again within the same turn, it would take its own abort for a failure
  turn(false);
  await until(() => now.opens.length === 2 && now.messages >= 12, "tokens of a second answer");
  now.stop();
  return promise;
}

/** `onerror` that lets it ask again, as it does by default. */
function askAgain(url, asked) {
  const watch = (seen, stop) => seen.opens.length === 2 && seen.messages > 14 && stop();
  return converse(url, asked, { retries: 1, watch });
}

// In turn, because all of them share the document that one hides.
const behaviours = {
  ...common(converse),
  cancel: (asked) => converse(given.url, asked, { watch: (seen, stop) => seen.messages === 5 && stop() }),
  "asks again": (asked) => over({ cut: "between", times: 1 }, askAgain, asked),
  "hidden tab": (asked) => over({}, hideAndShow, asked),
};
await report(["@microsoft/fetch-event-source"], behaviours, { atOnce: 1 });
