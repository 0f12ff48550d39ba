// Many streams in one tab: six over HTTP/1.1 and then /healthz; fifty over HTTP/2, one of them not read.
import { given, launch, pass, until } from "./support.mjs";

const browser = await launch({ insecure: true });
try {
  const context = await browser.newContext({ ignoreHTTPSErrors: true });
  const page = await context.newPage();
  await page.goto(new URL("/healthz", given.url).href);
  const protocol = await page.evaluate(() => performance.getEntriesByType("navigation")[0].nextHopProtocol);
  await page.evaluate(({ streams, rate }) => {
    window.counts = Array(streams).fill(0);
    window.held = [];
    for (let number = 0; number < streams; number += 1) {
      const mock = { tokens: null, tokens_per_second: number === 0 ? null : rate };
      const body = JSON.stringify({ prompt: "a", mock });
      fetch("/chat", { method: "POST", headers: { "content-type": "application/json" }, body }).then(async (answer) => {
        window.held.push(answer); // the first is not read, and must not be collected either
        window.counts[number] = 1;
        if (number === 0) return;
        const reader = answer.body.getReader();
        const decoder = new TextDecoder();
        for (;;) {
          const { done, value } = await reader.read();
          if (done) return;
          window.counts[number] += decoder.decode(value, { stream: true }).split('"token"').length - 1;
        }
      });
    }
  }, given);
  await until(() => page.evaluate(() => window.counts.every((count) => count > 0)), "all streams have begun");
  // Chromium takes some 60 MB for a page that does not read before it leaves a stream's window shut.
  const shown = () => page.evaluate(() => fetch("/debug/streams").then((answer) => answer.json()));
  const shut = ({ streams }) => streams.find((one) => one.http2.window <= 0 && one.waiting_for === "client");
  let stalled = null;
  if (given.stall) await until(async () => (stalled = shut(await shown())), "the first stream's window is shut", 60_000);
  const asked = await page.evaluate(async (patience) => {
    const began = performance.now();
    const late = new Promise((resolve) => setTimeout(resolve, patience * 1000, null));
    const status = await Promise.race([fetch("/healthz").then((answer) => answer.status), late]);
    return { status, milliseconds: performance.now() - began };
  }, given.patience);
  const before = await page.evaluate(() => window.counts.slice());
  await pass(2);
  const after = await page.evaluate(() => window.counts.slice());
  const rates = after.map((count, number) => (count - before[number]) / 2);
  if (given.stall) stalled = shut(await shown());
  console.log(JSON.stringify({ protocol, asked, rates, stalled }));
} finally {
  await browser.close();
}
