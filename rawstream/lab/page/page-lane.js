/* One lane: five tanks, the source's lamp, a tape of tokens, a line of memory, and one plain sentence.
 *
 * Rule 1: what is shown is the last sample as the server measured it; `<data value>` holds the exact figure.
 * Rule 2: the mark is the same in all lanes, high-water mark and TCP_NOTSENT_LOWAT as the sliders say. Where a lane
 *         keeps to it the line is whole; where it does not, the line is dashed, and what stands above it is hot.
 */
import { Chart, HISTORY, line, roundUp, tape } from "/page-charts.js";
import { bytes, bytesText, count, height, seconds, sizeText } from "/page-format.js";

/** The four ways, in the order in which people find them. */
export const LANES = [
  {
    lane: "whole",
    title: "whole answer",
    recipe: "send(everything)",
    idle: "Makes the whole answer first, then sends it. The reader sees nothing until the last token is made, and the server keeps all of it.",
  },
  {
    lane: "eager",
    title: "eager",
    recipe: "write(token)",
    idle: "Writes each token and asks nobody. What the reader does not take piles up in the server's memory, without a bound.",
  },
  {
    lane: "drain",
    title: "drain() only",
    recipe: "write(token); await drain()",
    idle: "What most people believe is enough. The transport's buffer has a bound; the kernel's send queue, behind it, takes megabytes.",
  },
  {
    lane: "rawstream",
    title: "rawstream",
    recipe: "await room; token; write",
    idle: "Waits for room first, and only then asks the source for a token. A slow reader stops the source itself.",
  },
];

const TANKS = [
  ["source", "source"],
  ["transport", "transport\nbuffer"],
  ["kernel_unsent", "kernel\nsend queue"],
  ["kernel_unacked", "network\n(unacked)"],
  ["client_kernel", "client's\nkernel"],
];

/** One write may stand above a mark, and a kernel rounds up: twice the mark is not yet an overflow. */
const TOLERANCE = 2;

/** Bytes at the source from which an answer is being hoarded. */
const HOARD = 64 * 1024;

export class LaneView {
  #text = {};
  #figures = {};
  #tanks = {};
  #bytesHeld = [];
  #madePerSample = [];
  #readPerSample = [];
  #last = null;
  #leftAt = null;
  #top = 64 * 1024;

  constructor(about) {
    this.about = about;
    this.name = about.lane;
    const element = document.getElementById("lane").content.firstElementChild.cloneNode(true);
    this.element = element;
    element.dataset.lane = this.name;
    const title = element.querySelector("h3");
    title.textContent = about.title;
    title.id = `lane-${this.name}`;
    element.setAttribute("aria-labelledby", title.id);
    element.querySelector(".recipe").textContent = about.recipe;
    this.picked = element.querySelector("input");
    this.picked.setAttribute("aria-label", `${about.title} takes part in the next run`);
    this.why = element.querySelector(".why");
    for (const figure of element.querySelectorAll("[data-figure]")) this.#figures[figure.dataset.figure] = figure;
    for (const text of element.querySelectorAll("[data-text]")) this.#text[text.dataset.text] = text;
    const pipe = element.querySelector(".pipe");
    pipe.setAttribute("aria-label", `Bytes on their way, ${about.title}`);
    for (const [place, name] of TANKS) pipe.append(this.#tank(place, name));
    this.#spark = new Chart(element.querySelector(".spark canvas"), (context, width, high, color) =>
      line(context, this.#bytesHeld, { width, height: high, top: this.#top, color: color("lane"), fill: 0.22, stroke: 2.5 }),
    );
    this.#tape = new Chart(element.querySelector(".tape"), (context, width, high, color) =>
      tape(context, this.#madePerSample, this.#readPerSample, {
        width,
        height: high,
        top: Math.max(1, ...this.#madePerSample.slice(-200), ...this.#readPerSample.slice(-200)),
        colors: { made: color("made"), read: color("read"), axis: color("edge") },
      }),
    );
    this.reset();
  }

  #spark;
  #tape;

  #tank(place, name) {
    const tank = document.getElementById("tank").content.firstElementChild.cloneNode(true);
    tank.dataset.place = place;
    tank.querySelector(".name").textContent = name;
    this.#tanks[place] = {
      element: tank,
      value: tank.querySelector("data"),
      number: tank.querySelector("data b"),
      unit: tank.querySelector("data small"),
      glass: tank.querySelector(".glass"),
      bound: tank.querySelector(".bound"),
    };
    return tank;
  }

  /** Bytes that the server holds for this lane at each sample; the page makes one scale for all lanes of it. */
  get held() {
    return this.#bytesHeld;
  }

  /** Bytes of this lane in the server's process at the last sample. */
  inProcess() {
    return this.#last ? (this.#last.bytes.source ?? 0) + (this.#last.bytes.transport ?? 0) : 0;
  }

  reset() {
    this.#bytesHeld = [];
    this.#madePerSample = [];
    this.#readPerSample = [];
    this.#last = null;
    this.#leftAt = null;
    this.element.dataset.state = "idle";
    delete this.element.dataset.source;
    this.why.textContent = this.about.idle;
    this.#text.source.textContent = "The source has not started.";
    for (const name of ["made", "read", "behind"]) this.#figure(name, 0, "0");
    this.#heldFigure(0);
    for (const [place] of TANKS) this.#fill(place, 0, 0, null, null);
    this.#spark.ask();
    this.#tape.ask();
  }

  /** A lane that is not part of the run. */
  leaveOut() {
    this.reset();
    this.element.dataset.state = "out";
    this.#text.source.textContent = "Not part of this run.";
  }

  /** The marks, before there is a sample: what the sliders say. */
  marks(settings) {
    this.settings = settings;
    const { bytes: places, peak, limits } = this.#last ?? { bytes: {}, peak: {}, limits: null };
    for (const [place] of TANKS) this.#fill(place, places[place] ?? 0, peak[place] ?? 0, this.#reference(place), limits);
  }

  /** The line that is drawn across a tank: bytes of all readers together, or null. */
  #reference(place) {
    const { readers = 1, write_high: transport, notsent_lowat: kernel } = this.settings ?? {};
    const each = { transport, kernel_unsent: kernel }[place];
    return each ? each * readers : null;
  }

  /** The bound that holds for this lane: bytes of all readers together; null: there is none. */
  #bound(place, limits) {
    const key = { transport: "transport", kernel_unsent: "kernel", client_kernel: "client_kernel" }[place];
    return limits?.[key] ?? null;
  }

  /** Show one sample of the server. */
  show(sample) {
    const last = this.#last;
    this.#last = sample;
    const { bytes: places, tokens } = sample;
    const held =
      (places.source ?? 0) + (places.transport ?? 0) + (places.kernel_unsent ?? 0) + (places.kernel_unacked ?? 0);
    const made = last ? Math.max(0, tokens.made - last.tokens.made) : 0;
    const read = last ? Math.max(0, tokens.read - last.tokens.read) : 0;
    push(this.#bytesHeld, held);
    push(this.#madePerSample, made);
    push(this.#readPerSample, read);

    this.element.dataset.state = sample.state;
    this.#heldFigure(held);
    this.#figure("behind", tokens.made - tokens.read, count(tokens.made - tokens.read));
    this.#figure("made", sample.rate.made, count(sample.rate.made));
    this.#figure("read", sample.rate.read, count(sample.rate.read));
    for (const [place] of TANKS) {
      this.#fill(place, places[place], sample.peak[place], this.#reference(place), sample.limits);
    }
    const text = this.#sourceText(sample, made);
    if (this.#text.source.textContent !== text) this.#text.source.textContent = text;
    const why = sentence(sample.why);
    if (this.why.textContent !== why) this.why.textContent = why;
    this.#tape.ask();
  }

  /** Draw the memory on the scale that all lanes share. */
  scale(top) {
    this.#top = top;
    const text = bytesText(top);
    if (this.#figures.top.textContent !== text) this.#figure("top", top, text);
    this.#spark.ask();
  }

  /** The reader's tab is being closed: what the source makes from now on, it makes for nobody. */
  left() {
    this.#leftAt = this.#last?.tokens.made ?? 0;
  }

  returned() {
    this.#leftAt = null;
  }

  #sourceText(sample, made) {
    const lamp = (state) => (this.element.dataset.source = state);
    if (sample.cancel_seconds !== null && sample.cancel_seconds !== undefined && !sample.source_open) {
      lamp("closed");
      return `Source closed ${seconds(sample.cancel_seconds)} after the reader left.`;
    }
    if (this.#leftAt !== null && sample.source_open) {
      lamp("wasted");
      return `The reader has gone. ${count(sample.tokens.made - this.#leftAt)} tokens made for nobody.`;
    }
    if (sample.state === "capped") {
      lamp("wasted");
      return "Ended: it held more memory than the lab allows.";
    }
    if (!sample.source_open) {
      lamp("closed");
      if (sample.state === "done") return "Source closed: it has made all of its tokens.";
      return sample.why?.includes("client_stalled") ? "Source closed by the stall deadline." : "Source closed.";
    }
    if (made > 0) {
      lamp("running");
      return "Source is making tokens.";
    }
    lamp("stopped");
    return "Source stands still.";
  }

  #figure(name, value, text) {
    this.#figures[name].value = value;
    this.#figures[name].textContent = text;
  }

  #heldFigure(value) {
    const [number, unit] = bytes(value);
    const figure = this.#figures.held;
    figure.value = value;
    figure.firstElementChild.textContent = number;
    figure.lastElementChild.textContent = unit;
  }

  #fill(place, value, peak, reference, limits) {
    const tank = this.#tanks[place];
    const [number, unit] = bytes(value);
    tank.value.value = value ?? "";
    tank.number.textContent = number;
    tank.unit.textContent = unit;
    const bound = this.#bound(place, limits);
    const mark = bound ?? reference;
    tank.glass.style.setProperty("--level", height(value));
    tank.glass.style.setProperty("--peak", height(peak));
    tank.glass.style.setProperty("--mark", mark === null ? 1 : height(mark));
    tank.element.classList.toggle("marked", mark !== null);
    tank.element.classList.toggle("unbounded", limits !== null && bound === null && reference !== null);
    const over = reference !== null && value > reference * TOLERANCE;
    const hoard = place === "source" && value > HOARD;
    tank.element.classList.toggle("over", over || hoard);
    const note = mark === null ? "" : limits !== null && bound === null ? "no bound" : `≤ ${sizeText(mark)}`;
    if (tank.bound.textContent !== note) tank.bound.textContent = note;
  }
}

/** A sentence begins with a capital and ends with a stop. */
function sentence(text) {
  if (text === "ended: client_stalled") return "The reader took nothing until the stall deadline, and was cut.";
  return text ? `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}` : "";
}

function push(values, value) {
  values.push(value);
  if (values.length > HISTORY) values.shift();
}
