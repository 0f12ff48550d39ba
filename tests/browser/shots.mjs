// Pictures of the page for the README: `node tests/browser/shots.mjs '{"url": …, "chromium": …, "folder": …}'`.
import { given, open, pass, until, withBrowser } from "./support.mjs";

const STAGE = { viewport: { width: 1600, height: 1000 } };
const PHONE = { viewport: { width: 360, height: 780 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };

await withBrowser({}, async (browser) => {
  const all = [];
  const session = async (options, steps) => {
    const { context, page, problems } = await open(browser, options);
    const shot = (name) => page.screenshot({ path: `${given.folder}/${name}.png` });
    const press = (name) => page.click(`[data-do="${name}"]`);
    await steps({ page, shot, press });
    if (await page.isEnabled('[data-do="reset"]')) await press("reset");
    await context.close();
    all.push(...problems);
  };
  const runs = async (page, seconds) => {
    await page.click('[data-do="start"]');
    await until(() => page.evaluate((enough) => window.sample?.elapsed > enough, seconds), "the run", 60_000);
  };

  for (const theme of ["dark", "light"]) {
    await session({ ...STAGE, colorScheme: theme }, async ({ page, shot, press }) => {
      await shot(`idle-${theme}`);
      await runs(page, 20);
      await shot(`running-${theme}`);
      await press("stall");
      await pass(6);
      await shot(`stalled-${theme}`);
      await press("leave");
      await pass(3);
      await page.mouse.move(0, 0);
      await shot(`cancelled-${theme}`);
    });
  }
  await session({ ...STAGE, viewport: { width: 1920, height: 1080 }, colorScheme: "dark" }, async ({ page, shot }) => {
    await runs(page, 20);
    await shot("stage");
  });
  await session({ ...PHONE, colorScheme: "dark" }, async ({ page, shot }) => {
    await runs(page, 8);
    await page.locator('.lane[data-lane="eager"]').scrollIntoViewIfNeeded();
    await page.evaluate(() => document.querySelector('.lane[data-lane="eager"]').scrollIntoView());
    await pass(0.3);
    await shot("narrow");
  });
  for (const theme of ["dark", "light"]) {
    await session({ ...STAGE, colorScheme: theme }, async ({ page }) => {
      const tank = (index) => page.locator("#windows-streams > li").nth(index);
      await page.click("#windows-start");
      await pass(4);
      await page.click('[aria-label="Stall stream 19"]');
      await until(() => tank(0).getAttribute("data-source").then((state) => state === "stopped"), "it is dry", 60_000);
      await pass(1.5);
      await page.mouse.move(0, 0);
      await page.locator("#windows").screenshot({ path: `${given.folder}/windows-${theme}.png` });
      await page.click("#windows-stop");
    });
  }
  await session({ ...STAGE, colorScheme: "dark" }, async ({ page, shot }) => {
    await runs(page, 2);
    await page.selectOption("#pace", "20");
    await page.selectOption("#credit", "16");
    await page.fill("#prompt", "Where do the tokens wait?");
    await page.press("#prompt", "Enter");
    await page.evaluate(() => document.getElementById("chat").scrollIntoView());
    await pass(4);
    await page.click("#hold");
    await pass(1);
    await shot("chat");
    await page.evaluate(() => document.getElementById("streams").scrollIntoView());
    await pass(1.5);
    await shot("streams");
    await page.click("#stop");
  });
  return { problems: all };
});
