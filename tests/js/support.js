// What the tests share: a scripted server behind `fetch`, and waiting with a deadline.
import { readFileSync } from "node:fs";

export const PAGE = new URL("../../rawstream/lab/page/", import.meta.url);
export const CORPUS = JSON.parse(readFileSync(new URL("../corpora/sse_wpt.json", import.meta.url), "utf8")).map(
  ({ bytes_b64: encoded, ...rest }) => ({ ...rest, bytes: new Uint8Array(Buffer.from(encoded, "base64")) }),
);

export const bytes = (text) => new TextEncoder().encode(text);
export const token = (text) => `data: ${JSON.stringify({ token: text })}\n\n`;
export const DONE = "data: [DONE]\n\n";

/**
 * A `fetch` that answers with `answers`, one per call: an Error (the network failed), or `{status, headers, chunks}`.
 * A chunk is bytes or text; "cut" breaks the connection, "hang" says nothing more. `calls` has what was asked,
 * each with `reads` (chunks taken) and `left` (whether the connection was closed by us).
 */
export function scripted(...answers) {
  const calls = [];
  const fetch = async (url, init) => {
    const answer = answers[Math.min(calls.length, answers.length - 1)];
    const call = { url, init, headers: new Headers(init.headers), body: init.body && JSON.parse(init.body) };
    calls.push(Object.assign(call, { reads: 0, left: false }));
    if (answer instanceof Error) throw answer;
    const { status = 200, headers = {}, chunks = [] } = answer;
    let at = 0;
    const stream = new ReadableStream(
      {
        start(controller) {
          init.signal?.addEventListener("abort", () => {
            call.left = true;
            controller.error(init.signal.reason);
          });
        },
        pull(controller) {
          call.reads += 1;
          const chunk = chunks[at++];
          if (chunk === "hang") return new Promise(() => {});
          if (chunk === "cut") throw new TypeError("terminated");
          if (chunk === undefined) return controller.close();
          controller.enqueue(typeof chunk === "string" ? bytes(chunk) : chunk);
          return undefined;
        },
        cancel() {
          call.left = true;
        },
      },
      { highWaterMark: 0 },
    );
    const type = { "content-type": "text/event-stream; charset=utf-8", "x-stream-id": "s1" };
    return new Response(status === 204 ? null : stream, { status, headers: { ...type, ...headers } });
  };
  return { fetch, calls };
}

/** The first true value of `what()`, asked after each turn of the event loop. */
export async function until(what, why = String(what), within = 5000) {
  const deadline = Date.now() + within;
  for (;;) {
    const value = await what();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`not within ${within} ms: ${why}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** The error that `promise` is rejected with. */
export async function failureOf(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("it did not fail");
}
