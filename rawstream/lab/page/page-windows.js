/* One HTTP/2 connection of the lab: a tank for each stream's window, and a bar for the connection's.
 *
 * Rule 1: every figure is the server's own; `<data value>` holds it exactly. Between two samples nothing moves.
 * Rule 2: all tanks are there from the start, and have room for whatever they will say: nothing jumps.
 */
import { bytesText, count, sizeText } from "/page-format.js";
import { Run } from "/page-run.js";

const STREAMS = 16;
const WINDOW = 16 * 1024;
const SECONDS = 300;

const SOURCES = {
  none: "no source yet",
  starting: "starts",
  running: "source runs",
  stopped: "source stopped",
  closed: "source closed",
};

const at = (id) => document.getElementById(id);

export class Windows {
  #run = null;
  #starting = false;
  #last = null;
  #tanks = Array.from({ length: STREAMS }, (_, index) => new Tank(2 * index + 1, (body) => this.#change(body)));
  #start = at("windows-start");
  #read = at("windows-read");
  #stop = at("windows-stop");

  constructor() {
    at("windows-streams").append(...this.#tanks.map((tank) => tank.element));
    this.#start.addEventListener("click", () => this.#begin());
    this.#read.addEventListener("click", () => this.#change({ read: true }));
    this.#stop.addEventListener("click", async () => {
      await this.leave();
      this.#say("Stopped. What is drawn is its last sample.");
      this.#start.focus();
    });
    this.#able();
  }

  /** End the run, if there is one: here and on the server. */
  async leave() {
    const before = this.#run;
    this.#run = null;
    if (!before) return;
    this.#able();
    this.#say("The connection was closed when you left this page.");
    await before.end();
  }

  async #begin() {
    if (this.#starting) return;
    this.#starting = true;
    this.#able();
    try {
      const before = this.#run;
      this.#run = null;
      await before?.end();
      const handlers = { sample: (state) => this.#show(state), ended: (state) => this.#ended(state) };
      this.#run = await Run.start({ streams: STREAMS, window: WINDOW, seconds: SECONDS }, handlers, "/lab/windows");
      this.#say("The streams begin.");
    } catch (error) {
      this.#say(`Not started: ${error.message}.`);
    } finally {
      this.#starting = false;
      this.#able();
    }
  }

  async #change(body) {
    try {
      const state = await this.#run?.change(body);
      if (state && this.#run) this.#show(state);
    } catch (error) {
      this.#say(`Refused: ${error.message}.`);
    }
  }

  #ended(state) {
    this.#run = null;
    this.#able();
    this.#say(`The connection is closed${state?.ended ? `: ${state.ended}` : ""}. What is drawn is its last sample.`);
  }

  /** One sample of the server. */
  #show(state) {
    this.#last = state;
    at("windows").dataset.now = state.now;
    const { granted, window: left } = state.connection;
    at("windows-connection").value = left ?? "";
    put(at("windows-connection"), `${bytesText(left)} of ${sizeText(granted)}`);
    at("windows-level").style.setProperty("--level", Math.max(0, left ?? 0) / granted);
    state.streams.forEach((stream, index) => this.#tanks[index]?.show(stream));
    this.#able();
    this.#say(sentence(state.streams));
  }

  #able() {
    const runs = this.#run !== null;
    this.#start.disabled = this.#starting;
    put(this.#start, runs ? "Start again" : "Start");
    this.#stop.disabled = !runs;
    this.#read.disabled = !runs || !this.#last?.streams.some((stream) => !stream.read || stream.source === "closed");
    for (const tank of this.#tanks) tank.able(runs);
    at("windows").dataset.state = runs ? "running" : "idle";
  }

  #say(text) {
    put(at("windows-status"), text);
  }
}

/** One stream: its window, its source, its tokens. */
class Tank {
  #stream = null;
  #figures = {};
  #text = {};

  /** `number`: what it is called until it has one. `change(body)`: asks the server. */
  constructor(number, change) {
    const element = at("window").content.firstElementChild.cloneNode(true);
    this.element = element;
    this.title = element.querySelector("h3");
    this.button = element.querySelector("button");
    this.level = element.querySelector(".level i");
    for (const figure of element.querySelectorAll("[data-figure]")) this.#figures[figure.dataset.figure] = figure;
    for (const text of element.querySelectorAll("[data-text]")) this.#text[text.dataset.text] = text;
    put(this.#text.granted, `of ${sizeText(WINDOW)}`);
    this.button.addEventListener("click", () => change({ stream: this.#stream.stream, read: this.#wants() }));
    this.#name(number);
  }

  /** Would pressing the button have it read? */
  #wants() {
    return this.#stream !== null && (!this.#stream.read || this.#stream.source === "closed");
  }

  #name(number) {
    put(this.title, `stream ${number}`);
    const text = !this.#wants() ? "Stall" : this.#stream.source === "closed" ? "Ask anew" : "Read";
    const label = text === "Ask anew" ? `Ask anew for stream ${number}` : `${text} stream ${number}`;
    put(this.button, text);
    if (this.button.getAttribute("aria-label") !== label) this.button.setAttribute("aria-label", label);
  }

  able(runs) {
    this.button.disabled = !runs || this.#stream === null;
  }

  show(stream) {
    this.#stream = stream;
    this.#name(stream.stream);
    const left = Math.max(0, stream.window ?? 0);
    this.element.dataset.source = stream.source;
    this.element.classList.toggle("stalled", !stream.read);
    this.element.classList.toggle("dry", stream.window !== null && left === 0);
    this.level.style.setProperty("--level", left / stream.granted);
    this.#figure("window", stream.window, bytesText(stream.window));
    this.#figure("tokens", stream.tokens, count(stream.tokens));
    this.#figure("rate", stream.rate, count(stream.rate));
    put(this.#text.granted, `of ${sizeText(stream.granted)}`);
    put(this.#text.source, SOURCES[stream.source]);
  }

  #figure(name, value, text) {
    this.#figures[name].value = value ?? "";
    put(this.#figures[name], text);
  }
}

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** What is so now, in words that change only when it does: they are read aloud. */
function sentence(streams) {
  const cut = streams.filter((one) => one.source === "closed");
  const unread = streams.filter((one) => one.source !== "closed" && !one.read);
  const others = streams.filter((one) => one.source !== "closed" && one.read);
  const told = [];
  if (cut.length) {
    const stalled = cut.every((one) => one.why === "client_stalled");
    told.push(stalled ? `${named(cut)} took nothing until the stall deadline: cut.` : `${named(cut)}: over.`);
  }
  const stopped = unread.filter((one) => one.source === "stopped");
  const draining = unread.filter((one) => one.source !== "stopped");
  if (stopped.length) {
    const own = stopped.length > 1 ? "their sources have" : "its source has";
    told.push(`${named(stopped)}: not read, no window left, and ${own} stopped.`);
  }
  if (draining.length) told.push(`${named(draining)}: not read, the window drains.`);
  if (others.length && others.every((one) => one.rate > 0)) {
    told.push(told.length ? `The other ${others.length} go on.` : "All streams are read, and go on.");
  }
  return told.join(" ") || "The streams begin.";
}

/** "Stream 1", "Streams 1, 3", "7 streams". */
function named(streams) {
  if (streams.length === 1) return `Stream ${streams[0].stream}`;
  if (streams.length > 3) return `${streams.length} streams`;
  return `Streams ${streams.map((one) => one.stream).join(", ")}`;
}
