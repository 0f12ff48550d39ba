/* The table of live streams, from `/debug/events`.
 *
 * Rule 1: it is watched only while it can be seen: not in a hidden tab, not scrolled away.
 * Rule 2: rows are kept and refilled, at most `SHOWN` of them; what is over is counted in the last line.
 */
import { bytes, bytesText, count, seconds } from "/page-format.js";

const SHOWN = 40;

export class StreamTable {
  #source = null;
  #seen = false;
  #rows = new Map();
  #body = document.getElementById("stream-rows");
  #count = document.getElementById("streams-count");
  #empty = this.#body.querySelector(".empty");

  constructor() {
    new IntersectionObserver(([entry]) => {
      this.#seen = entry.isIntersecting;
      this.#watch();
    }).observe(document.getElementById("streams"));
    document.addEventListener("visibilitychange", () => this.#watch());
  }

  #watch() {
    if (!this.#seen || document.hidden) {
      this.#source?.close();
      this.#source = null;
    } else if (!this.#source) {
      this.#source = new EventSource("/debug/events?interval=500");
      this.#source.onmessage = (event) => this.#show(JSON.parse(event.data));
    }
  }

  #show({ streams }) {
    this.#count.textContent = count(streams.length);
    const shown = streams.slice(0, SHOWN);
    const live = new Set(shown.map((stream) => stream.id));
    for (const [id, row] of this.#rows) {
      if (!live.has(id)) {
        row.remove();
        this.#rows.delete(id);
      }
    }
    for (const stream of shown) {
      let row = this.#rows.get(stream.id);
      if (!row) {
        row = document.createElement("tr");
        row.dataset.stream = stream.id;
        for (let index = 0; index < 9; index += 1) row.append(document.createElement("td"));
        for (const index of [2, 5, 6, 7]) row.cells[index].className = "number";
        row.cells[4].append(split());
        this.#rows.set(stream.id, row);
        this.#body.append(row);
      }
      fill(row, stream);
    }
    const over = streams.length - shown.length;
    this.#empty.hidden = streams.length > 0 && over === 0;
    this.#empty.firstElementChild.textContent = over > 0 ? `and ${count(over)} more` : "No stream runs.";
    if (over > 0) this.#body.append(this.#empty);
  }
}

function split() {
  const bar = document.createElement("div");
  bar.className = "split";
  for (const name of ["source", "client", "network"]) {
    const part = document.createElement("i");
    part.className = name;
    bar.append(part);
  }
  return bar;
}

function put(cell, text) {
  if (cell.textContent !== text) cell.textContent = text;
}

function fill(row, stream) {
  const { buffered, seconds: time, tcp } = stream;
  const cells = row.cells;
  put(cells[0], stream.id);
  put(cells[1], stream.lane ?? stream.path);
  put(cells[2], count(stream.tokens));
  put(cells[3], stream.waiting_for ?? "nothing");
  const bar = cells[4].firstElementChild;
  const all = time.source + time.client + time.network;
  for (const part of bar.children) part.style.flexGrow = all ? time[part.className] / all : 0;
  bar.title = `waited for the source ${seconds(time.source)}, the client ${seconds(time.client)}, the network ${seconds(time.network)}`;
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", bar.title);
  put(cells[5], bytesText((buffered.source ?? 0) + buffered.transport));
  const kernel = buffered.kernel_unsent === null ? null : buffered.kernel_unsent + buffered.kernel_unacked;
  put(cells[6], bytes(kernel).join(" "));
  put(cells[7], seconds(tcp?.rtt));
  put(cells[8], stream.why ?? "");
}
