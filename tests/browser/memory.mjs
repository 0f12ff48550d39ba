// One lane alone, with many slow readers, for a while: the memory that the page itself shows, at the begin and the end.
import { figures, given, open, pass, until, withBrowser } from "./support.mjs";

async function set(page, name, text) {
  await page.focus(`#slider-${name}`);
  await page.keyboard.press("Home");
  for (let step = 0; step < 30; step += 1) {
    if ((await page.getAttribute(`#slider-${name}`, "aria-valuetext")) === text) return;
    await page.keyboard.press("ArrowRight");
  }
  throw new Error(`the slider ${name} has no ${text}`);
}

await withBrowser({}, async (browser) => {
  const { page, problems } = await open(browser);
  for (const lane of await page.locator(".lane").all()) {
    if ((await lane.getAttribute("data-lane")) !== given.lane) await lane.locator("input").uncheck();
  }
  await set(page, "readers", String(given.readers));
  await set(page, "tokens_per_second", given.tokensPerSecond);
  await set(page, "read_rate", given.readRate);
  await page.click('[data-do="start"]');
  await until(() => page.evaluate(() => window.sample?.elapsed > 0.1), "the run has samples");
  const first = await figures(page);
  const looks = [];
  while ((await page.evaluate(() => window.sample.elapsed)) < given.seconds) {
    const now = await figures(page);
    looks.push({ elapsed: now.sample.elapsed, rss: now.rss, held: now.lanes[given.lane].held });
    await pass(1);
  }
  const last = await figures(page);
  await page.click('[data-do="reset"]');
  await until(() => page.evaluate(() => document.getElementById("lab").dataset.state === "idle"), "reset");
  const { tanks, held, behind, made, read } = last.lanes[given.lane];
  return { problems, grown: last.rss - first.rss, rss: last.rss, tanks, held, behind, made, read, looks };
});
