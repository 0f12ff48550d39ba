// The running `rawstream serve` that RAWSTREAM_URL names, as it can be asked from outside.
import { until } from "./support.js";

export const LIVE = process.env.RAWSTREAM_URL;
export const without = LIVE ? false : "RAWSTREAM_URL names no running rawstream serve";

export async function debug() {
  return (await fetch(`${LIVE}/debug/streams`)).json();
}

/** Until the server has no stream; gives the milliseconds that it took. */
export async function untilNoStream(within = 5000) {
  const start = performance.now();
  await until(async () => (await debug()).totals.streams === 0, "the source is closed", within);
  return Math.round(performance.now() - start);
}

/** The tokens of the only stream, once they stay as they are. */
export async function settledTokens() {
  let last = -1;
  let since = Date.now();
  return until(
    async () => {
      const { streams } = await debug();
      if (streams[0]?.tokens !== last) {
        last = streams[0]?.tokens;
        since = Date.now();
      }
      return Date.now() - since > 400 && last;
    },
    "the source stands still",
    20_000,
  );
}

/** What the mock answers to `prompt`: the same every time. */
export async function answerTo(prompt, mock) {
  const body = JSON.stringify({ prompt, mock: { ...mock, tokens_per_second: null } });
  const headers = { "content-type": "application/json" };
  const response = await fetch(`${LIVE}/chat`, { method: "POST", headers, body });
  const lines = (await response.text()).split("\n").filter((line) => line.startsWith("data: {"));
  return lines.map((line) => JSON.parse(line.slice(6)).token).join("");
}
