// rawstream's own client (rawstream/lab/page/client.js) in Node, against POST /chat.
import { streamChat } from "../../../rawstream/lab/page/client.js";

import { common, given, report, told } from "./support.mjs";

async function read(url, { model, user }, { path = "/chat", watch = () => {} } = {}) {
  const seen = { text: "", events: 0, finish: null, done: false, error: null };
  const controller = new AbortController();
  try {
    const body = { model, user };
    for await (const event of streamChat({ url: `${url}${path}`, prompt: "hello", body, signal: controller.signal })) {
      seen.events += 1;
      seen.text += event.text;
      seen.finish = event.finishReason ?? seen.finish;
      seen.done ||= event.done;
      if (watch(seen, controller) === "break") break;
    }
  } catch (error) {
    seen.error = { ...told(error), retryable: error.retryable };
  }
  return seen;
}

await report([], {
  ...common(read),
  cancel: async (asked) => ({
    break: await read(given.url, asked, { watch: (seen) => (seen.events >= 5 ? "break" : undefined) }),
    signal: await read(given.url, asked, { watch: (seen, controller) => seen.events >= 5 && controller.abort() }),
  }),
});
