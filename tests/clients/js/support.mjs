// What the client scripts share: the behaviours asked for, a line that watches or cuts what passes, and deadlines.
//
// A script is one client. It gets its arguments as JSON on the command line and prints one line of JSON with what the
// client saw; what must hold is asserted in Python, where the gateway and its upstream can be asked as well.
import { readFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { createRequire } from "node:module";

const folder = process.env.RAWSTREAM_NODE_MODULES;
export const require = createRequire(folder ? `${folder}/x.js` : import.meta.url);

/** What pytest asked for: `url` of the gateway, `cases`: what each behaviour is to ask for, and more. */
export const given = JSON.parse(process.argv[2]);

/** The version of a package as it is installed, which is what was tested. */
export const version = (name) => {
  const [path] = require.resolve.paths(name).map((place) => `${place}/${name}/package.json`).filter(there);
  return JSON.parse(readFileSync(path, "utf8")).version;
};

function there(path) {
  try {
    return readFileSync(path).length > 0;
  } catch {
    return false;
  }
}

export const pass = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** The value of `promise`, or an error after that many milliseconds. */
export async function within(promise, what, milliseconds = 20_000) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${milliseconds} ms: ${what}`)), milliseconds);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** The first true value of `what()`. */
export async function until(what, why = String(what), milliseconds = 10_000) {
  const deadline = Date.now() + milliseconds;
  for (;;) {
    const value = await what();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`not within ${milliseconds} ms: ${why}`);
    await pass(10);
  }
}

/** An error as JSON: its own words, and those of what caused it. */
export function told(error) {
  if (error === null || error === undefined) return null;
  if (typeof error !== "object") return { name: typeof error, message: String(error) };
  const { name, message, status, statusCode, code, type, isRetryable, cause } = error;
  const kind = error.constructor?.name;
  return { name, kind, message, status, statusCode, code, type, isRetryable, cause: told(cause) };
}

/**
 * Run the behaviours that were asked for, so many `atOnce`, and report what they saw. One that throws, or takes too
 * long, is reported as `{failed}`. `last` cleans up, and what it gives is reported too.
 */
export async function report(versions, behaviours, { atOnce = 3, last = () => ({}) } = {}) {
  const seen = {};
  const one = async ([name, asked]) => {
    try {
      if (!behaviours[name]) throw new Error(`there is no such behaviour: ${name}`);
      seen[name] = await within(behaviours[name](asked), name, 30_000);
    } catch (error) {
      seen[name] = { failed: error.stack ?? String(error) };
    }
  };
  const cases = Object.entries(given.cases);
  const work = async () => {
    while (cases.length) await one(cases.shift());
  };
  await Promise.all(Array.from({ length: atOnce }, work));
  const installed = Object.fromEntries(versions.map((name) => [name, version(name)]));
  const all = { node: process.version, versions: installed, seen, ...(await last()) };
  await new Promise((done) => process.stdout.write(`${JSON.stringify(all)}\n`, done));
  process.exit(0);
}

function count(bytes, what) {
  let found = 0;
  for (let at = bytes.indexOf(what); at >= 0; at = bytes.indexOf(what, at + what.length)) found += 1;
  return found;
}

/**
 * A line to the gateway that can be listened to, and cut. `url` takes the place of the gateway's.
 *
 * `cut: "between"` closes the connection after `after` pieces of the answer, behind a whole chunk: a clean end of the
 * transport without the end of the body; `"inside"` in the middle of a chunk; `"reset"` with a TCP reset; `"clean"` as
 * a careless proxy does it, which ends the body as if it were whole. Without `cut` it changes nothing. `requests` and
 * `answers` have the heads that passed, `heartbeats` how many comments came back.
 */
export async function line({ cut = null, after = 8, times = Infinity } = {}) {
  const seen = { requests: [], answers: [], heartbeats: 0, cuts: 0 };
  const target = new URL(given.url);
  const server = createServer((client) => {
    const gateway = connect(Number(target.port), target.hostname);
    let pieces = 0;
    let asked = false; // a browser's second connection, just in case, is told 408 in the end
    let gone = false;
    const end = () => {
      gone = true;
      gateway.destroy();
      client.destroySoon();
    };
    client.on("error", end).on("close", end);
    gateway.on("error", end).on("close", end);
    client.on("data", (bytes) => {
      const text = bytes.toString("latin1");
      if (/^(GET|POST) /.test(text)) seen.requests.push(text.split("\r\n\r\n")[0]);
      asked = true;
      gateway.write(bytes);
    });
    gateway.on("data", (bytes) => {
      if (gone) return;
      const text = bytes.toString("latin1");
      if (asked && text.startsWith("HTTP/1.1 ")) seen.answers.push(text.split("\r\n\r\n")[0]);
      seen.heartbeats += count(bytes, ": hb\n");
      pieces += 1;
      if (cut === null || seen.cuts >= times || pieces < after) {
        client.write(bytes);
        return;
      }
      seen.cuts += 1;
      client.write(cut === "inside" ? bytes.subarray(0, Math.floor(bytes.length / 2)) : bytes);
      if (cut === "clean") client.write("0\r\n\r\n");
      if (cut === "reset") {
        gone = true;
        gateway.destroy();
        client.resetAndDestroy();
      } else end();
    });
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const close = () => {
    server.close();
  };
  return Object.assign(seen, { url: `http://127.0.0.1:${server.address().port}`, close });
}

const CUTS = ["between", "inside", "reset"];

/** The ways to lose a connection, each with what `one(cut)` gives. */
export async function eachCut(one) {
  return Object.fromEntries(await Promise.all(CUTS.map(async (cut) => [cut, await one(cut)])));
}

/** What `converse(url, asked)` gives over a line, and what passed on it. */
export async function over(options, converse, asked) {
  const passing = await line(options);
  try {
    const seen = await converse(passing.url, asked);
    const { requests, answers, heartbeats } = passing;
    return { ...seen, requests, answers, heartbeats };
  } finally {
    passing.close();
  }
}

/** `asked` once for each of its models. */
const eachModel = (options, converse) => async ({ models, ...asked }) => {
  const all = models.map(async (model) => [model, await over(options, converse, { ...asked, model })]);
  return Object.fromEntries(await Promise.all(all));
};

/** The behaviours of the matrix that need nothing of a client but whole conversations. */
export const common = (converse, failing = converse) => ({
  "full stream": (asked) => over({}, converse, asked),
  "error before": eachModel({}, converse),
  "error after": eachModel({}, failing),
  cut: (asked) => eachCut((cut) => over({ cut }, converse, asked)),
  "ended early": (asked) => over({ cut: "clean" }, converse, asked),
  heartbeats: (asked) => over({}, converse, asked),
  "non-ASCII": (asked) => over({}, converse, asked),
});
