// Start, stall and a slider without a mouse; what has the focus can be seen.
import { open, until, withBrowser } from "./support.mjs";

await withBrowser({}, async (browser) => {
  const { page, problems } = await open(browser, { reducedMotion: "reduce" });
  const focus = () =>
    page.evaluate(() => {
      const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
      const { dataset, id, tagName } = document.activeElement;
      return { what: dataset.do ?? (id || tagName), outline: outlineStyle === "none" ? 0 : parseFloat(outlineWidth) };
    });
  const seen = [];
  const tabTo = async (what) => {
    for (let step = 0; step < 30; step += 1) {
      await page.keyboard.press("Tab");
      const at = await focus();
      seen.push(at);
      if (at.what === what) return;
    }
    throw new Error(`no ${what} within 30 steps: ${JSON.stringify(seen)}`);
  };
  await tabTo("start");
  await page.keyboard.press("Enter");
  await until(() => page.evaluate(() => window.sample?.elapsed > 0.5), "the run has samples");
  await tabTo("stall");
  await page.keyboard.press("Space");
  await until(() => page.evaluate(() => document.getElementById("lab").dataset.state === "stalled"), "stalled");
  const pressed = await page.getAttribute('[data-do="stall"]', "aria-pressed");
  await page.keyboard.press("Space");
  await until(() => page.evaluate(() => document.getElementById("lab").dataset.state === "running"), "reading again");
  await tabTo("slider-read_rate");
  const before = await page.getAttribute("#slider-read_rate", "aria-valuetext");
  await page.keyboard.press("ArrowRight");
  const after = await page.getAttribute("#slider-read_rate", "aria-valuetext");
  await until(() => page.locator("#events li", { hasText: "rate is now" }).count(), "the server has the new rate");
  await page.click('[data-do="reset"]');
  const unnamed = await page.evaluate(() =>
    [...document.querySelectorAll("button, input, select, textarea, canvas, [tabindex='0']")]
      .filter((one) => !(one.getAttribute("aria-label") || one.getAttribute("aria-labelledby") || one.labels?.length || one.textContent.trim()))
      .map((one) => one.outerHTML.slice(0, 120)),
  );
  return { problems, seen, pressed, before, after, unnamed };
});
