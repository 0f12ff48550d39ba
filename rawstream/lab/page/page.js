/* The page: four lanes over one run of the lab, the memory of the process, the windows of HTTP/2, the chat and the table
 * of live streams.
 *
 * Rule 1: everything drawn was measured by the server. Between two samples nothing moves.
 * Rule 2: a control that can do nothing now is disabled, and what has been done is said in words.
 */
import { Chart, HISTORY, line, roundUp, stack } from "/page-charts.js";
import { ChatBox } from "/page-chat.js";
import { Sliders } from "/page-controls.js";
import { bytesText } from "/page-format.js";
import { LANES, LaneView } from "/page-lane.js";
import { Run } from "/page-run.js";
import { StreamTable } from "/page-streams.js";
import { Windows } from "/page-windows.js";

const RUN_SECONDS = 300;
const SHOWN_EVENTS = 60;

const at = (id) => document.getElementById(id);
const lanes = LANES.map((about) => new LaneView(about));
at("lanes").append(...lanes.map((lane) => lane.element));

const sliders = new Sliders(at("sliders"), () => mark(), changed);
const buttons = Object.fromEntries(
  [...at("controls").querySelectorAll("[data-do]")].map((button) => [button.dataset.do, button]),
);
let run = null;
let starting = false;
let stalled = false;
let left = false;
const told = new Set();
const noEvents = at("events").firstElementChild;
let memory = { rss: [], lanes: lanes.map(() => []) };

const chart = new Chart(at("memory"), (context, width, height, color) => {
  const top = roundUp(Math.max(0, ...memory.rss), 64 * 1024 * 1024);
  const series = memory.lanes.map((values, index) => ({ values, color: color(lanes[index].name) }));
  stack(context, series, { width, height, top });
  line(context, memory.rss, { width, height, top, color: color("ink"), stroke: 2.5 });
  context.fillStyle = color("dim");
  context.font = "13px sans-serif";
  context.textBaseline = "top";
  context.fillText(bytesText(top), 6, 4);
});
legend();

function legend() {
  const entries = [["ink", "resident memory (/proc)"], ...lanes.map((lane) => [lane.name, lane.about.title])];
  for (const [name, text] of entries) {
    const item = document.createElement("li");
    item.dataset.series = name;
    item.textContent = text;
    at("memory-legend").append(item);
  }
}

// --- the run -------------------------------------------------------------------------------------------------

function say(text) {
  if (at("status").textContent !== text) at("status").textContent = text;
}

function mark() {
  for (const lane of lanes) lane.marks(run ? run.settings : sliders.values);
}

function able() {
  const runs = run !== null;
  for (const name of ["stall", "leave", "reconnect", "reset"]) buttons[name].disabled = !runs;
  buttons.stall.disabled = !runs || left;
  buttons.leave.disabled = !runs || left;
  buttons.reconnect.disabled = !runs || !left;
  buttons.start.disabled = starting;
  buttons.start.textContent = runs ? "Start again" : "Start";
  buttons.stall.setAttribute("aria-pressed", String(stalled && !left));
  buttons.stall.textContent = stalled && !left ? "Let the reader read" : "Stall the reader";
  at("lab").dataset.state = !runs ? "idle" : left ? "left" : stalled ? "stalled" : "running";
}

function clear() {
  stalled = left = false;
  memory = { rss: [], lanes: lanes.map(() => []) };
  told.clear();
  at("events").replaceChildren(noEvents);
  for (const lane of lanes) lane.reset();
  chart.ask();
}

async function start() {
  const settings = sliders.values;
  const taking = lanes.filter((lane) => lane.picked.checked);
  if (!taking.length) return say("No lane is picked: tick “runs” in at least one of them.");
  if (starting) return undefined;
  starting = true;
  able();
  try {
    const before = run;
    run = null;
    await before?.end();
    clear();
    for (const lane of lanes) if (!lane.picked.checked) lane.leaveOut();
    const body = { lanes: taking.map((lane) => lane.name), tokens: null, seconds: RUN_SECONDS, ...settings };
    run = await Run.start(body, { sample: show, ended });
    run.settings = settings;
    say("Running.");
  } catch (error) {
    say(`Not started: ${error.message}.`);
  } finally {
    starting = false;
    mark();
    able();
  }
  return undefined;
}

function ended() {
  run = null;
  say("The run has ended. What is drawn is its last sample.");
  able();
}

/** One sample of the server. */
function show(state) {
  const by = new Map(state.lanes.map((lane) => [lane.lane, lane]));
  at("lab").dataset.now = state.now;
  lanes.forEach((lane, index) => {
    const sample = by.get(lane.name);
    if (sample) lane.show(sample);
    push(memory.lanes[index], lane.inProcess());
  });
  push(memory.rss, state.process.rss);
  resident(state.process.rss);
  const top = roundUp(Math.max(...lanes.flatMap((lane) => lane.held.slice(-HISTORY))), 64 * 1024);
  for (const lane of lanes) lane.scale(top);
  chart.ask();
  tell(state.events ?? []);
}

function resident(value) {
  for (const id of ["rss", "rss-now"]) {
    at(id).value = value ?? "";
    at(id).textContent = bytesText(value);
  }
}

function push(values, value) {
  values.push(value);
  if (values.length > HISTORY) values.shift();
}

function tell(events) {
  for (const event of events) {
    const key = `${event.at} ${event.lane} ${event.text}`;
    if (told.has(key)) continue;
    told.add(key);
    noEvents.remove();
    const item = document.createElement("li");
    const time = document.createElement("time");
    time.textContent = `${event.at.toFixed(1)} s`;
    const lane = lanes.find((one) => one.name === event.lane);
    item.append(time, lane ? `${lane.about.title}: ` : "", event.text);
    if (lane) item.dataset.series = lane.name;
    at("events").prepend(item);
  }
  while (at("events").children.length > SHOWN_EVENTS) at("events").lastElementChild.remove();
}

async function change(body, done) {
  try {
    await run?.change(body);
    done();
  } catch (error) {
    say(`Refused: ${error.message}.`);
  }
  able();
}

/** A slider was let go: the reader's speed is changed as it runs, all else begins a new run. */
function changed(name, value) {
  if (!run) return undefined;
  if (name !== "read_rate") return start();
  return change({ read_rate: value }, () => say("The reader's speed has changed."));
}

at("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
buttons.stall.addEventListener("click", () => {
  const wanted = !stalled;
  change({ stall: wanted }, () => {
    stalled = wanted;
    say(wanted ? "The readers have stopped reading. Watch who keeps making tokens." : "The readers read again.");
  });
});
buttons.leave.addEventListener("click", () => {
  for (const lane of lanes) lane.left();
  change({ leave: true }, () => {
    left = true;
    say("The readers' sockets are closed. Watch when each source is closed.");
    buttons.reconnect.focus();
  });
});
buttons.reconnect.addEventListener("click", () => {
  change(stalled ? { reconnect: true, stall: false } : { reconnect: true }, () => {
    left = stalled = false;
    for (const lane of lanes) lane.returned();
    say("New readers are connected.");
    able();
    buttons.leave.focus();
  });
});
buttons.reset.addEventListener("click", async () => {
  const before = run;
  run = null;
  await before?.end();
  clear();
  sliders.reset();
  resident(null);
  say("Nothing runs.");
  mark();
  able();
  buttons.start.focus();
});

// A page that goes into the browser's back/forward cache keeps its connections: whoever leaves closes them here.
addEventListener("pagehide", () => {
  chat.stop();
  windows.leave();
  run?.end();
  run = null;
});
addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  say("The run ended when you left this page.");
  able();
});

mark();
able();
const windows = new Windows();
const chat = new ChatBox();
new StreamTable();
document.body.classList.add("ready");
