// Chromium, and pages made of this repository's files and of npm's React, on the origin of a running `rawstream serve`.
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { chromium } from "playwright-core";

import { PAGE } from "./support.js";

const folder = process.env.RAWSTREAM_NODE_MODULES;
const require = createRequire(folder ? `${folder}/x.js` : import.meta.url);
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** A fresh browser, gone with the test `t`: its context, whose pages find our files under /__test__/. */
export async function launch(t) {
  const profile = await mkdtemp(join(tmpdir(), "rawstream-chromium-"));
  const executablePath = process.env.RAWSTREAM_CHROMIUM ?? "/usr/bin/chromium";
  const context = await chromium.launchPersistentContext(profile, { executablePath, headless: true, args: FLAGS });
  t.after(async () => {
    await context.close();
    await rm(profile, { recursive: true, force: true, maxRetries: 5 });
  });
  await context.route("**/__test__/**", (route) => route.fulfill(file(new URL(route.request().url()))));
  return context;
}

/** A page on the server's origin with React of that mode. Errors on it are in `page.errors`. */
export async function openPage(context, url, mode = "production") {
  const page = await context.newPage();
  page.errors = [];
  page.on("pageerror", (error) => page.errors.push(String(error)));
  page.on("console", (line) => line.type() === "error" && page.errors.push(line.text()));
  await page.goto(`${url}/__test__/${mode}.html`);
  return page;
}

function file({ pathname }) {
  const path = pathname.slice("/__test__/".length);
  const [, mode] = /^(\w+)\.html$/.exec(path) ?? [];
  if (mode) return { contentType: "text/html; charset=utf-8", body: html(mode) };
  const [, build, name] = /^npm\/(\w+)\/(.+)$/.exec(path) ?? [];
  const at = path.startsWith("lab/") ? new URL(path.slice(4), PAGE) : new URL(`pages/${path}`, import.meta.url);
  const body = name ? asModule(name, build) : readFileSync(at, "utf8");
  return { contentType: "text/javascript; charset=utf-8", body };
}

function html(mode) {
  const names = ["react", "react-dom", "react-dom/client", "scheduler"];
  const imports = Object.fromEntries(names.map((name) => [name, `/__test__/npm/${mode}/${name}`]));
  return `<!doctype html><html lang="en"><meta charset="utf-8"><title>test</title><link rel="icon" href="data:,">
<script type="importmap">${JSON.stringify({ imports })}</script><body><main id="root"></main></body></html>`;
}

/** React is published as CommonJS only. Its build of that mode as a module that a browser can import. */
function asModule(name, mode) {
  const cjs = name === "react-dom/client" ? "react-dom/cjs/react-dom-client" : `${name}/cjs/${name}`;
  const path = join(require.resolve(`${name.split("/")[0]}/package.json`), `../../${cjs}.${mode}.js`);
  const source = readFileSync(path, "utf8");
  const needs = [...new Set(Array.from(source.matchAll(/require\("([^"]+)"\)/g), (match) => match[1]))];
  const names = name === "react" ? Object.keys(require("react")).filter((key) => /^[a-zA-Z]\w*$/.test(key)) : [];
  return `${needs.map((need, index) => `import r${index} from "${need}";`).join("\n")}
const module = { exports: {} };
const required = { ${needs.map((need, index) => `"${need}": r${index}`).join(", ")} };
((module, exports, require, process) => {
${source}
})(module, module.exports, (name) => required[name], { env: { NODE_ENV: "${mode}" } });
export default module.exports;
export const { ${names.join(", ")} } = module.exports;
`;
}
