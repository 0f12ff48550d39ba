// What the browser tests share: a real Chromium, a page that reports whatever goes wrong, and waiting with a deadline.
// A script gets its arguments as JSON on the command line and prints one line of JSON; pytest does the asserting.
import { createRequire } from "node:module";

const folder = process.env.RAWSTREAM_NODE_MODULES;
const require = createRequire(folder ? `${folder}/package.json` : new URL("../js/package.json", import.meta.url));
const { chromium } = require("playwright-core");

/** What pytest asked for: `url`, `chromium`, and more. */
export const given = JSON.parse(process.argv[2]);

/** Seconds on the clock that the server's own process has too (CLOCK_MONOTONIC). */
export const clock = () => Number(process.hrtime.bigint()) / 1e9;

export async function launch({ cache = false, insecure = false } = {}) {
  const args = ["--disable-dev-shm-usage", "--disable-gpu"];
  if (insecure) args.push("--ignore-certificate-errors"); // Chromium speaks HTTP/2 over TLS only
  if (process.getuid?.() === 0) args.push("--no-sandbox"); // Chromium refuses to run as root otherwise
  return chromium.launch({
    executablePath: given.chromium,
    args,
    // The back/forward cache keeps a page and its connections: what leaves through it must be tested with it.
    ignoreDefaultArgs: cache ? ["--disable-back-forward-cache"] : [],
  });
}

/** A page, and in `problems` every error it had: console, exceptions, violations of the content security policy. */
export async function open(browser, { path = "/", ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1600, height: 1000 }, ...options });
  const page = await context.newPage();
  const problems = [];
  page.on("console", (message) => message.type() === "error" && problems.push(`console: ${message.text()} ${message.location().url}`));
  page.on("pageerror", (error) => problems.push(`exception: ${error.message}`));
  await page.addInitScript(() => {
    window.shifts = 0;
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts += entry.value;
    }).observe({ type: "layout-shift", buffered: true });
    document.addEventListener("securitypolicyviolation", (event) => {
      console.error(`content security policy: ${event.violatedDirective} ${event.blockedURI}`);
    });
    // The last sample of the run, as it came: the page's figures are compared with it.
    const Plain = window.EventSource;
    window.EventSource = class extends Plain {
      constructor(url) {
        super(url);
        if (String(url).includes("/lab/runs/")) {
          window.run = String(url).split("/")[3];
          this.addEventListener("message", (event) => (window.sample = JSON.parse(event.data)));
        }
        if (String(url).includes("/lab/windows/")) {
          window.windowsRun = String(url).split("/")[3];
          this.addEventListener("message", (event) => (window.windowsSample = JSON.parse(event.data)));
        }
      }
    };
  });
  await page.goto(new URL(path, given.url).href);
  await page.waitForSelector("body.ready");
  return { context, page, problems };
}

export async function get(path) {
  const answer = await fetch(new URL(path, given.url));
  return { status: answer.status, body: answer.headers.get("content-type") === "application/json" ? await answer.json() : null };
}

/** The first true value of `what()`. */
export async function until(what, why = String(what), within = 10_000) {
  const deadline = Date.now() + within;
  for (;;) {
    const value = await what();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`not within ${within} ms: ${why}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Let so many seconds of the experiment pass: it is a rate over time that is measured. */
export const pass = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

/** Every figure that the page shows, and the sample that it is to be of. Taken in one turn of its event loop. */
export function figures(page) {
  return page.evaluate(() => {
    const lanes = {};
    for (const lane of document.querySelectorAll(".lane")) {
      const tanks = {};
      for (const tank of lane.querySelectorAll(".tank")) {
        const { value } = tank.querySelector("data");
        tanks[tank.dataset.place] = value === "" ? null : Number(value);
      }
      const figure = (name) => Number(lane.querySelector(`[data-figure="${name}"]`).value);
      lanes[lane.dataset.lane] = {
        tanks,
        held: figure("held"),
        behind: figure("behind"),
        made: figure("made"),
        read: figure("read"),
        state: lane.dataset.state,
        lamp: lane.dataset.source ?? null,
        source: lane.querySelector(".source").textContent,
        why: lane.querySelector(".why").textContent,
      };
    }
    return {
      now: Number(document.getElementById("lab").dataset.now),
      rss: Number(document.getElementById("rss").value),
      lanes,
      sample: window.sample ?? null,
    };
  });
}

export function report(result) {
  process.stdout.write(`${JSON.stringify(result)}\n`);
}

/** Run `body`, and end the browser whatever happens. */
export async function withBrowser(options, body) {
  const browser = await launch(options);
  try {
    report(await body(browser));
  } finally {
    await browser.close();
  }
}
