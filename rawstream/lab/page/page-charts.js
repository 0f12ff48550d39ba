/* Canvases: a lane's memory, its tape of tokens, and the memory of the whole process.
 *
 * Rule 1: a chart draws the samples it was given, one step per sample, and nothing between or after them.
 * Rule 2: it is redrawn at most once per frame, and only when there is something new.
 */

/** Samples that a chart remembers: two minutes at ten per second. */
export const HISTORY = 1200;

/** A canvas that follows its box and the theme, and draws when asked, once per frame. */
export class Chart {
  #canvas;
  #draw;
  #asked = false;
  #colors = {};

  /** `draw(context, width, height, color)`, in CSS pixels; `color("water")` is the theme's `--water`. */
  constructor(canvas, draw) {
    this.#canvas = canvas;
    this.#draw = draw;
    new ResizeObserver(() => this.ask()).observe(canvas);
    addEventListener("themechange", () => {
      this.#colors = {};
      this.ask();
    });
  }

  ask() {
    if (this.#asked) return;
    this.#asked = true;
    requestAnimationFrame(() => {
      this.#asked = false;
      this.#paint();
    });
  }

  #paint() {
    const canvas = this.#canvas;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width || !height) return;
    const ratio = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    this.#draw(context, width, height, (name) => {
      this.#colors[name] ??= getComputedStyle(canvas).getPropertyValue(`--${name}`).trim();
      return this.#colors[name];
    });
  }
}

/** How many samples the width stands for: half a minute at first, then as long as the run. */
export function spanOf(values) {
  return Math.min(HISTORY, Math.max(300, values.length));
}

/** One line with its area filled. `values` may hold nulls: the line is then broken. */
export function line(context, values, { width, height, top, color, fill, span = spanOf(values), stroke = 2 }) {
  const step = width / (span - 1);
  const start = width - (values.length - 1) * step;
  const y = (value) => height - 1.5 - (value / (top || 1)) * (height - 4);
  context.lineWidth = stroke;
  context.lineJoin = "round";
  context.strokeStyle = color;
  context.beginPath();
  let open = false;
  values.forEach((value, index) => {
    if (value === null) {
      open = false;
      return;
    }
    context[open ? "lineTo" : "moveTo"](start + index * step, y(value));
    open = true;
  });
  context.stroke();
  if (fill && values.length > 1) {
    context.lineTo(width, height);
    context.lineTo(start, height);
    context.globalAlpha = fill;
    context.fillStyle = color;
    context.fill();
    context.globalAlpha = 1;
  }
}

/** The tape: upwards what the source made in each sample, downwards what the reader read. */
export function tape(context, made, read, { width, height, top, colors, bar = 3 }) {
  const middle = Math.round(height / 2);
  const room = Math.floor(width / bar);
  const paint = (values, color, direction) => {
    context.fillStyle = color;
    values.slice(-room).forEach((value, index, shown) => {
      if (!value) return;
      const x = width - (shown.length - index) * bar;
      // A square root: a reader's few tokens stay visible beside a source's thousands.
      const size = Math.max(2, Math.sqrt(Math.min(1, value / (top || 1))) * (middle - 3));
      context.fillRect(x, direction < 0 ? middle - 1 - size : middle + 2, bar - 1, size);
    });
  };
  paint(made, colors.made, -1);
  paint(read, colors.read, 1);
  context.fillStyle = colors.axis;
  context.fillRect(0, middle, width, 1);
}

/** Areas on top of each other, `series` being [{values, color}], oldest sample first and equally long. */
export function stack(context, series, { width, height, top, span = spanOf(series[0]?.values ?? []) }) {
  const step = width / (span - 1);
  const length = Math.max(0, ...series.map((one) => one.values.length));
  const base = new Array(length).fill(0);
  const x = (index) => width - (length - 1 - index) * step;
  const y = (value) => height - (value / (top || 1)) * (height - 4);
  for (const { values, color } of series) {
    context.fillStyle = color;
    context.beginPath();
    base.forEach((value, index) => context.lineTo(x(index), y(value)));
    values.forEach((value, index) => (base[index] += value ?? 0));
    for (let index = length - 1; index >= 0; index -= 1) context.lineTo(x(index), y(base[index]));
    context.globalAlpha = 0.75;
    context.fill();
    context.globalAlpha = 1;
  }
}

/** The next round number of bytes above: 1, 2 or 5 times a power of ten of its unit, so that a scale seldom jumps. */
export function roundUp(value, least) {
  let top = least;
  for (let index = 0; top < value; index += 1) top *= index % 3 === 1 ? 2.5 : 2;
  return top;
}
