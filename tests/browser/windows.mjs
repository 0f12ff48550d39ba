// One HTTP/2 connection of the lab, worked by hand: one stream runs dry, it is read, another is stalled, stop.
import { get, given, open, until, withBrowser } from "./support.mjs";

await withBrowser({}, async (browser) => {
  const { page, problems } = await open(browser, { colorScheme: given.theme ?? "light" });
  const look = () =>
    page.evaluate(() => ({
      now: Number(document.getElementById("windows").dataset.now),
      status: document.getElementById("windows-status").textContent,
      connection: Number(document.getElementById("windows-connection").value),
      streams: [...document.querySelectorAll("#windows-streams > li")].map((one) => {
        const figure = (name) => Number(one.querySelector(`[data-figure="${name}"]`).value);
        return {
          name: one.querySelector("h3").textContent,
          window: figure("window"),
          tokens: figure("tokens"),
          rate: figure("rate"),
          source: one.dataset.source,
          level: Number(one.querySelector(".level i").style.getPropertyValue("--level")),
          button: one.querySelector("button").getAttribute("aria-label"),
        };
      }),
      sample: window.windowsSample ?? null,
    }));
  const when = (what, holds) =>
    until(async () => {
      const seen = await look();
      // What a press has brought is drawn too, between two samples of the event stream.
      return seen.now === seen.sample?.now && holds(seen) && seen;
    }, what, 60_000);
  const others = ({ streams }) => streams.slice(1);
  const shot = (name) => (given.folder ? page.screenshot({ path: `${given.folder}/${name}.png` }) : null);
  const result = { problems };

  result.idle = await look();
  await page.evaluate(() => document.getElementById("windows").scrollIntoView({ behavior: "instant" }));
  await page.focus("#windows-start");
  await page.keyboard.press("Enter");
  result.begun = await when("all streams have tokens", (seen) => seen.streams.every((one) => one.tokens > 0));
  result.stopped = await when("the source stops", ({ streams }) => streams[0].source === "stopped" && streams[0].rate === 0);
  await shot("windows");
  const told = (before) => (seen) => others(seen).every((one, index) => one.tokens > before[index + 1].tokens + 50);
  result.later = await when("the others go on", told(result.stopped.streams));

  // By keyboard: the button of the stream has the focus, before and after.
  await page.focus('[aria-label="Read stream 1"]');
  await page.keyboard.press("Space");
  const more = result.later.streams[0].tokens;
  result.resumed = await when("it goes on", ({ streams }) => streams[0].tokens > more + 50);
  result.focused = await page.evaluate(() => document.activeElement.getAttribute("aria-label"));
  await page.click('[aria-label="Stall stream 5"]');
  result.another = await when("another one stops", ({ streams }) => streams[2].window === 0 && streams[2].source === "stopped");
  await page.click("#windows-read");
  result.all = await when("all are read", ({ streams }) => streams.every((one) => one.source === "running"));
  const id = await page.evaluate(() => window.windowsRun);
  await page.click("#windows-stop");
  await until(async () => (await get(`/lab/windows/${id}`)).status === 404, "the run is gone");
  result.over = await look();
  result.shifts = await page.evaluate(() => window.shifts);

  // Leaving the page ends it, too.
  await page.click("#windows-start");
  await until(() => page.evaluate((before) => window.windowsRun !== before, id), "another run is watched");
  await when("it runs", (seen) => seen.now > result.over.now && seen.streams.every((one) => one.tokens > 0));
  const again = await page.evaluate(() => window.windowsRun);
  result.ran = (await get(`/lab/windows/${again}`)).status;
  await page.goto("about:blank");
  await until(async () => (await get(`/lab/windows/${again}`)).status === 404, "the run has left with the page");
  result.left = (await get("/debug/streams")).body.streams.length;
  return result;
});
