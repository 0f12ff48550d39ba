// The lab, worked by hand in a real browser: start, stall, close the tab, reconnect, reset.
import { figures, get, open, pass, until, withBrowser } from "./support.mjs";

await withBrowser({}, async (browser) => {
  const { page, problems } = await open(browser);
  const lane = (name) => page.locator(`.lane[data-lane="${name}"]`);
  const press = (name) => page.click(`[data-do="${name}"]`);
  const result = { problems, running: [] };

  await press("start");
  await until(() => page.evaluate(() => window.sample?.elapsed > 1.5), "the run has samples");
  for (let look = 0; look < 5; look += 1) {
    result.running.push(await figures(page));
    await pass(0.25);
  }
  const id = await page.evaluate(() => window.run);

  await press("stall");
  // The rawstream lane stands still once its buffers are full: then three ways of asking have one answer.
  await until(async () => {
    const [before, , after] = [await figures(page), await pass(0.5), await figures(page)];
    return JSON.stringify(before.lanes.rawstream.tanks) === JSON.stringify(after.lanes.rawstream.tanks);
  }, "the rawstream lane stands still");
  result.before = (await get(`/lab/runs/${id}`)).body;
  result.stalled = await figures(page);
  result.streams = (await get("/debug/streams")).body.streams;
  result.after = (await get(`/lab/runs/${id}`)).body;

  await press("leave");
  await until(() => lane("rawstream").getAttribute("data-source").then((state) => state === "closed"), "cancelled");
  await until(() => lane("eager").getAttribute("data-source").then((state) => state === "wasted"), "eager goes on");
  result.left = await figures(page);
  result.leftState = (await get(`/lab/runs/${id}`)).body;

  await press("reconnect");
  await until(() => page.evaluate(() => window.sample.lanes.every((one) => one.readers > 0)), "readers are back");
  const rate = (name) => page.evaluate((lane) => window.sample.lanes.find((one) => one.lane === lane).rate.read, name);
  await until(async () => (await rate("rawstream")) > 0, "they read, although the ones before were stalled");
  result.back = await figures(page);

  await press("reset");
  await until(async () => (await get(`/lab/runs/${id}`)).status === 404, "the run is gone");
  result.idle = await figures(page);
  result.shifts = await page.evaluate(() => window.shifts);
  return result;
});
