// Leaving in every way a browser has, before the first token and in mid-stream. The source's own tally is the witness.
import { readFileSync } from "node:fs";
import { clock, given, open, pass, until, withBrowser } from "./support.mjs";

const WAYS = ["navigate", "reload", "close", "back and forward"];

const tally = () => {
  const lines = readFileSync(given.tally, "utf8").split("\n").filter(Boolean);
  return lines.map((line) => ({ event: line.split(" ")[0], at: Number(line.split(" ")[1]) }));
};
const times = (event, lines = tally()) => lines.filter((line) => line.event === event).length;

await withBrowser({ cache: true }, async (browser) => {
  const left = [];
  let { context, page, problems } = await open(browser);
  for (let turn = 0; turn < given.turns; turn += 1) {
    const way = WAYS[turn % WAYS.length];
    const waits = Math.floor(turn / WAYS.length) % 2 === 0;
    await page.goto(given.url); // a page to go back to
    await page.goto(new URL("/?another", given.url).href);
    await page.waitForSelector("body.ready");
    const before = times("opened");
    await page.fill("#prompt", waits ? "wait for me" : "go on");
    await page.press("#prompt", "Enter");
    await until(() => times("opened") === before + 1, "the source is opened");
    if (!waits) await until(() => page.evaluate(() => Number(document.getElementById("consumed").value) >= 8), "tokens");

    let restored = null;
    if (way === "navigate") await page.goto("about:blank");
    if (way === "reload") await page.reload();
    if (way === "close") await page.close({ runBeforeUnload: false });
    if (way === "back and forward") await page.goBack({ waitUntil: "commit" });
    const gone = clock();
    await until(() => times("closed") === before + 1, `the source is closed after: ${way}`);
    const closed = tally().findLast((line) => line.event === "closed").at;
    await pass(0.4); // longer than between two batches: a source that went on would show it
    if (way === "back and forward") {
      await page.goForward({ waitUntil: "commit" });
      await page.waitForSelector("body.ready");
      restored = await page.evaluate(() => document.getElementById("chat-status").textContent);
    }
    const after = tally().filter((line) => line.event === "pulled" && line.at > gone).length;
    left.push({ way, waits, seconds: closed - gone, batchesAfter: after, restored });
    if (way === "close") ({ page } = await reopened(context, problems));
  }
  return { left, problems, opened: times("opened"), closed: times("closed") };
});

async function reopened(context, problems) {
  const page = await context.newPage();
  page.on("pageerror", (error) => problems.push(`exception: ${error.message}`));
  return { page };
}
