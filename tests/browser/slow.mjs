// Slow 3G through the DevTools protocol, and a tab that does not read at all: how far ahead is the source?
import { get, given, open, pass, until, withBrowser } from "./support.mjs";

/** What the DevTools call "Slow 3G": bytes per second and milliseconds. */
const SLOW_3G = { offline: false, latency: 2000, downloadThroughput: 51_200, uploadThroughput: 51_200 };

/** Tokens that the page has consumed, and that the source has made: as the server says, past the slow network. */
async function look(page) {
  const consumed = await page.evaluate(() => Number(document.getElementById("consumed").value));
  const { streams } = (await get("/debug/streams")).body;
  return { consumed, made: streams.find((stream) => stream.path === "/chat")?.tokens ?? null };
}

/** The last tab's stream is gone. */
const quiet = () => until(async () => (await get("/debug/streams")).body.totals.streams === 0, "no stream is left");

async function ask(page, credit) {
  await page.selectOption("#pace", "null");
  await page.selectOption("#credit", credit ? String(credit) : "");
  await page.fill("#prompt", "as fast as this page reads");
  await page.press("#prompt", "Enter");
}

async function slow(browser, credit) {
  const { context, page, problems } = await open(browser);
  const devtools = await context.newCDPSession(page);
  await devtools.send("Network.enable");
  await devtools.send("Network.emulateNetworkConditions", SLOW_3G);
  await ask(page, credit);
  await until(async () => (await look(page)).consumed > 0, "the first token", 30_000);
  const looks = [];
  for (let second = 0; second <= given.seconds; second += 1) {
    looks.push(await look(page));
    await pass(1);
  }
  const shown = await page.evaluate(() => Number(document.getElementById("made").value));
  await page.click("#stop");
  await context.close();
  await quiet();
  return { credit, looks, shown, problems };
}

async function held(browser, credit) {
  const { context, page, problems } = await open(browser);
  await ask(page, credit);
  await until(async () => (await look(page)).consumed > 0, "the first token");
  await page.click("#hold");
  let before = await look(page);
  await until(async () => {
    await pass(1);
    const now = await look(page);
    const still = now.made === before.made && now.consumed === before.consumed;
    before = now;
    return still;
  }, "the source stands still", 120_000);
  const steps = [];
  if (credit) {
    for (let step = 0; step < 5; step += 1) {
      const { consumed } = await look(page);
      await page.click("#take");
      await until(async () => (await look(page)).consumed === consumed + 1, "one token was taken");
      await pass(0.5);
      steps.push(await look(page));
    }
  }
  const shown = await page.evaluate(() => Number(document.getElementById("made").value));
  await page.click("#stop");
  await context.close();
  await quiet();
  return { credit, ...before, shown, steps, problems };
}

await withBrowser({}, async (browser) => ({
  held: [await held(browser, null), await held(browser, 16), await held(browser, 1)],
  slow: [await slow(browser, null), await slow(browser, 256)],
}));
