/* The sliders: each goes through a list of sensible values, and says in words what it stands at. */
import { sizeText, count } from "/page-format.js";

const KiB = 1024;
const powers = (from, to) => Array.from({ length: Math.log2(to / from) + 1 }, (_, index) => from * 2 ** index);

const SLIDERS = [
  {
    name: "tokens_per_second",
    title: "Tokens per second",
    values: [10, 50, 100, 200, 500, 1000, 2000, 5000, 10000],
    value: 2000,
    text: (value) => count(value),
    hint: "of each source",
  },
  {
    name: "read_rate",
    title: "Reader speed",
    values: [0, ...powers(256, 1024 * KiB)],
    value: 4 * KiB,
    text: (value) => (value ? `${sizeText(value)}/s` : "reads nothing"),
    hint: "takes effect at once",
  },
  {
    name: "readers",
    title: "Readers",
    values: [1, 2, 5, 10, 20, 30, 40, 50],
    value: 5,
    text: (value) => count(value),
    hint: "in each lane",
  },
  {
    name: "write_high",
    title: "High-water mark",
    values: powers(512, 1024 * KiB),
    value: 2 * KiB,
    text: sizeText,
    hint: "of rawstream's transport buffer",
  },
  {
    name: "notsent_lowat",
    title: "TCP_NOTSENT_LOWAT",
    values: [...powers(KiB, 1024 * KiB), 0],
    value: 4 * KiB,
    text: (value) => (value ? sizeText(value) : "off"),
    hint: "of rawstream's kernel queue",
  },
  {
    name: "sndbuf",
    title: "SO_SNDBUF",
    values: [...powers(4 * KiB, 4096 * KiB), 0],
    value: 0,
    text: (value) => (value ? sizeText(value) : "auto"),
    hint: "of every connection; auto is the kernel's choice",
  },
];

/** Settings of the next run; `onChange(name, value)` when the user has let go of a slider. */
export class Sliders {
  #values = {};
  #show = {};

  constructor(container, onInput, onChange) {
    for (const about of SLIDERS) {
      const slider = document.getElementById("slider").content.firstElementChild.cloneNode(true);
      const input = slider.querySelector("input");
      const output = slider.querySelector("output");
      slider.querySelector(".name").textContent = about.title;
      slider.querySelector(".hint").textContent = about.hint;
      input.name = about.name;
      input.id = `slider-${about.name}`;
      input.max = about.values.length - 1;
      output.htmlFor = input.id;
      input.setAttribute("aria-label", `${about.title}, ${about.hint}`);
      const show = () => {
        const value = about.values[input.valueAsNumber];
        this.#values[about.name] = value;
        output.textContent = about.text(value);
        input.setAttribute("aria-valuetext", about.text(value));
        input.style.setProperty("--at", input.valueAsNumber / input.max);
      };
      input.addEventListener("input", () => {
        show();
        onInput();
      });
      input.addEventListener("change", () => onChange(about.name, this.#values[about.name]));
      this.#show[about.name] = (value) => {
        input.value = about.values.indexOf(value);
        show();
      };
      this.#show[about.name](about.value);
      container.append(slider);
    }
  }

  get values() {
    return { ...this.#values };
  }

  /** Back to where the sliders stood at first. */
  reset() {
    for (const about of SLIDERS) this.#show[about.name](about.value);
  }
}
