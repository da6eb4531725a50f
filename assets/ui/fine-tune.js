// The page of one job: draws its curves, follows its stream, and puts new parts in the place of old ones.

import { Chart, across, controls, number, unit } from "./charts.js";
import { localTimes } from "./page.js";
import { takePlace } from "./places.js";

const section = document.getElementById("curves");
const base = `/ui/fine-tunes/${section.dataset.job}`;
const told = document.getElementById("told");
// Times are in milliseconds. Milestones are said aloud no more often than this.
const SAY_EVERY = 10_000;
const DRAW_EVERY = 500;
// Between looks of a page that has no place for a stream.
const LOOK_EVERY = 4_000;
// A line with more points is asked for anew, thinned.
const MOST_POINTS = 3_000;

// Number of the last event that the page was told of.
let seen = +section.dataset.last;
// Names of figures that the curves have, or lack because no chart shows them.
let known = new Set();
let curves = null;
let state = { x: "step", smoothing: +section.dataset.smoothing, log: false };
const charts = new Map();

const say = (text) => { told.textContent = text; };

async function load() {
  const response = await fetch(`${base}/curves?smoothing=${state.smoothing}`, { headers: { accept: "application/json" } });
  if (response.status === 401) location.reload();
  if (!response.ok) return;
  curves = await response.json();
  for (const { lines } of curves.charts) for (const { name } of lines) known.add(name);
  draw();
}

function place(chart) {
  let figure = section.querySelector(`[data-chart="${chart.id}"]`);
  if (!figure) {
    figure = document.createElement("figure");
    figure.className = "card chart";
    figure.dataset.chart = chart.id;
    const caption = document.createElement("figcaption");
    caption.textContent = chart.title;
    const plot = document.createElement("div");
    plot.className = "plot";
    const said = document.createElement("p");
    said.className = "said";
    figure.append(caption, plot, said);
    section.querySelector(".grid").append(figure);
  }
  return figure;
}

function draw() {
  const by = state.x === "epoch" && !(curves.epochs && curves.total_steps) ? "step" : state.x;
  for (const chart of curves.charts) {
    const figure = place(chart);
    if (!charts.has(chart.id)) charts.set(chart.id, new Chart(figure.querySelector(".plot"), { title: chart.title, say }));
    const drawn = charts.get(chart.id);
    drawn.unit = unit(by);
    drawn.log = state.log && chart.id === "loss";
    drawn.marks = by === "time" ? [] : curves.checkpoints.map((step) => across({ step: [step] }, by, curves)[0]);
    drawn.draw(chart.lines.flatMap((line, colour) => {
      const x = across(line, by, curves);
      const raw = { label: line.label, x, y: line.value, colour, faint: line.smooth.length > 0 };
      if (!line.smooth.length) return [raw];
      return [raw, { label: `${line.label}, smooth`, x, y: line.smooth, colour }];
    }));
    figure.querySelector(".said").textContent = chart.lines.map((line) => sentence(chart, line)).join(" ");
  }
}

function sentence(chart, line) {
  let best = 0;
  line.value.forEach((value, index) => {
    if (chart.falls ? value < line.value[best] : value > line.value[best]) best = index;
  });
  const last = number(line.value.at(-1));
  if (line.value.length < 2) return `${line.label}: ${last}.`;
  return `${line.label}: ${last} at last, ${chart.falls ? "lowest" : "highest"} ${number(line.value[best])} at step ${line.step[best]}.`;
}

// Adds the figures of a step to the lines that have them; true if the curves must be asked for anew.
function add({ seq, attempt, data }) {
  if (!curves || seq <= curves.last_event || !data) return false;
  curves.last_event = seq;
  const isNew = (name) => typeof data[name] === "number" && !known.has(name);
  let asked = attempt !== curves.attempt || Object.keys(data).some(isNew);
  if (asked) {
    for (const name of Object.keys(data).filter(isNew)) known.add(name);
    return true;
  }
  curves.total_steps = data.total_steps ?? curves.total_steps;
  for (const chart of curves.charts) {
    for (const line of chart.lines) {
      const value = data[line.name];
      if (value == null) continue;
      line.step.push(data.step);
      line.seconds.push(curves.seconds_before + (data.elapsed_seconds ?? 0));
      line.value.push(value);
      if (line.smooth.length) {
        line.sum = state.smoothing * line.sum + (1 - state.smoothing) * value;
        line.weight = state.smoothing * line.weight + (1 - state.smoothing);
        line.smooth.push(line.sum / line.weight);
      }
      if (line.step.length > MOST_POINTS) asked = true;
    }
  }
  return asked;
}

function duration(seconds) {
  const rounded = Math.round(seconds);
  if (rounded < 60) return `${rounded} s`;
  if (rounded < 3600) return `${Math.floor(rounded / 60)} min ${rounded % 60} s`;
  return `${Math.floor(rounded / 3600)} h ${Math.floor((rounded % 3600) / 60)} min`;
}

// The bar and its words; false if the page does not have them yet.
function progress({ step, total_steps: total, remaining_seconds: left }) {
  const bar = document.querySelector("#steps progress");
  if (!bar) return false;
  Object.assign(bar, { max: total, value: step });
  const words = document.querySelector("#steps .hint");
  if (words) words.textContent = `Step ${step} of ${total}${Number.isFinite(left) ? `, ${duration(left)} left` : ""}`;
  return true;
}

// Puts the parts of a fresh page in the place of the old ones. Focus stays on what leads to the same place.
async function refresh() {
  const response = await fetch(`${base}?part=live`, { headers: { accept: "text/html" } });
  if (!response.ok || response.redirected) { location.reload(); return; }
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  const aim = (node) => node?.getAttribute("href") ?? node?.form?.getAttribute("action");
  const focused = aim(document.activeElement);
  for (const part of fresh.querySelectorAll("[data-part]")) {
    localTimes(part);
    document.getElementById(part.id)?.replaceWith(part);
  }
  if (focused && document.activeElement === document.body) {
    const same = [...document.querySelectorAll("[data-part] a, [data-part] button")].find((node) => aim(node) === focused);
    (same ?? document.getElementById("main")).focus();
  }
}

// Calls `work` at most once in `time`, and once more at the end.
function seldom(time, work) {
  let waiting = null;
  let last = 0;
  return () => {
    if (waiting) return;
    waiting = setTimeout(() => { waiting = null; last = Date.now(); work(); }, Math.max(0, last + time - Date.now()));
  };
}

const drawSoon = seldom(DRAW_EVERY, () => curves && draw());
const refreshSoon = seldom(2_000, refresh);
const loadSoon = seldom(2_000, load);
let lastSaid = "";
const saySoon = seldom(SAY_EVERY, () => say(lastSaid));

// What happens to the job, by the names of its events.
const tellings = {
  points(points) {
    if (points.map(add).some(Boolean)) loadSoon();
    if (!progress(points.at(-1).data)) refreshSoon();
    drawSoon();
  },
  changed({ text }) {
    lastSaid = text;
    saySoon();
    refreshSoon();
  },
  end({ why }) {
    over = true;
    close();
    if (why === "signed-out") location.reload();
    else { loadSoon(); refreshSoon(); }
  },
};

function tell(name, data, id) {
  seen = Math.max(seen, +id || 0);
  tellings[name](JSON.parse(data));
}

const isLive = "live" in section.dataset;
let ready = false;
let over = false;
let held = false;
// What listens: changes whenever that begins or ends, so that what was asked for before is dropped.
let listener = null;
let source = null;
let leave = null;
let timer = null;

// Follows the stream if there is a place for it. Looks at what has happened otherwise, from time to time, until one is
// free.
async function listen() {
  if (listener || !ready || !isLive || over || held || document.hidden) return;
  clearTimeout(timer);
  const mine = Symbol("listener");
  listener = mine;
  const place = await takePlace();
  if (listener !== mine) place?.();
  else if (place) follow(place);
  else await look(mine);
}

function follow(place) {
  leave = place;
  source = new EventSource(`${base}/stream?after=${seen}`);
  for (const name of Object.keys(tellings)) {
    source.addEventListener(name, (event) => tell(name, event.data, event.lastEventId));
  }
  source.addEventListener("error", () => {
    // The browser has given up, as the server refuses. A look finds out why.
    if (source?.readyState !== EventSource.CLOSED) return;
    close();
    listener = Symbol("listener");
    look(listener);
  });
}

// Reads what has happened since, and holds no connection.
async function look(mine) {
  const ask = fetch(`${base}/stream?after=${seen}&hold=no`, { headers: { accept: "text/event-stream" } });
  const response = await ask.catch(() => null);
  const frames = response?.ok ? await response.text().catch(() => "") : "";
  if (listener !== mine) return;
  if (response?.status === 401) location.reload();
  for (const frame of frames.split("\n\n")) {
    const field = (name) => frame.match(new RegExp(`^${name}: ?(.*)$`, "m"))?.[1];
    if (field("event") in tellings) tell(field("event"), field("data"), field("id"));
  }
  if (listener !== mine) return;
  listener = null;
  timer = setTimeout(listen, LOOK_EVERY);
}

function close() {
  listener = null;
  clearTimeout(timer);
  source?.close();
  source = null;
  leave?.();
  leave = null;
}

// A page that nobody looks at holds neither a connection nor a place.
addEventListener("pagehide", close);
addEventListener("pageshow", listen);
document.addEventListener("visibilitychange", () => (document.hidden ? close() : listen()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => curves && draw());

const place_of_controls = document.getElementById("controls");
load().then(() => {
  if (!curves?.charts.length && !isLive) return;
  state = controls(place_of_controls, {
    smoothing: state.smoothing,
    epochs: curves?.epochs,
    change: (next) => {
      const anew = next.smoothing !== state.smoothing;
      state = next;
      if (anew) load();
      else draw();
    },
  });
  if (!isLive) return;
  const hold = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: "Hold still" });
  hold.setAttribute("aria-pressed", "false");
  hold.addEventListener("click", () => {
    held = !held;
    hold.setAttribute("aria-pressed", String(held));
    if (held) close();
    else listen();
  });
  place_of_controls.append(hold);
  ready = true;
  listen();
});
