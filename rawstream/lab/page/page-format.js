/* How a measured figure is written and drawn. Pure functions; nothing here knows the page.
 *
 * Rule 1: a figure that the system could not give (null) is a dash, never a zero.
 * Rule 2: one scale for all tanks, so that two of them can be compared by eye.
 */

const UNITS = ["B", "KiB", "MiB", "GiB"];

/** Three significant digits and a unit: [number, unit]. */
export function bytes(value) {
  if (value === null || value === undefined) return ["–", ""];
  let size = value;
  let unit = 0;
  while (size >= 999.5 && unit < UNITS.length - 1) {
    size /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
  return [size.toFixed(digits), UNITS[unit]];
}

export function bytesText(value) {
  return bytes(value).join(" ").trim();
}

/** A size that somebody chose, without zeros behind the point: 2048 → "2 KiB". */
export function sizeText(value) {
  const [number, unit] = bytes(value);
  return `${Number(number)} ${unit}`;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** 12345 → "12,345". */
export function count(value) {
  return value === null || value === undefined ? "–" : whole.format(value);
}

/** 0.00002 → "20 µs"; 0.0012 → "1.2 ms"; 3.4 → "3.4 s". */
export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value > 0 && value < 0.0001) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 0.0995) return `${(value * 1000).toFixed(1)} ms`;
  if (value < 0.9995) return `${(value * 1000).toFixed(0)} ms`;
  return `${value.toFixed(1)} s`;
}

/** Bytes at the bottom and at the top of every tank: a logarithmic scale, or a bound of 2 KiB would be a hair. */
export const SCALE = { bottom: 128, top: 1024 ** 3 };

/** Where on the scale so many bytes are: 0 is the bottom, 1 the top. */
export function height(value) {
  if (!value || value <= SCALE.bottom) return value > 0 ? 0.012 : 0;
  return Math.min(1, Math.max(0.012, Math.log(value / SCALE.bottom) / Math.log(SCALE.top / SCALE.bottom)));
}
