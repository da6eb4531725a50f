// The page of one job: draws its curves, follows its stream, and puts new parts in the place of old ones.

import { Chart, across, controls, number, unit } from "./charts.js";
import { localTimes } from "./page.js";

const section = document.getElementById("curves");
const base = `/ui/fine-tunes/${section.dataset.job}`;
const told = document.getElementById("told");
// Times are in milliseconds. Milestones are said aloud no more often than this.
const SAY_EVERY = 10_000;
const DRAW_EVERY = 500;
// A line with more points is asked for anew, thinned.
const MOST_POINTS = 3_000;

let curves = null;
let state = { x: "step", smoothing: +section.dataset.smoothing, log: false };
const charts = new Map();

const say = (text) => { told.textContent = text; };

async function load() {
  const response = await fetch(`${base}/curves?smoothing=${state.smoothing}`, { headers: { accept: "application/json" } });
  if (response.status === 401) location.reload();
  if (!response.ok) return;
  curves = await response.json();
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
  const again = attempt !== curves.attempt;
  let asked = again;
  const names = new Set(curves.charts.flatMap((chart) => chart.lines.map((line) => line.name)));
  if (["train_loss", "valid_loss"].some((name) => data[name] != null && !names.has(name))) asked = true;
  if (asked) return true;
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

let source = null;
let over = false;
let held = false;

function listen() {
  if (source || over || held || document.hidden || !("live" in section.dataset)) return;
  const after = curves?.last_event ?? section.dataset.last;
  source = new EventSource(`${base}/stream?after=${after}`);
  source.addEventListener("points", (event) => {
    const points = JSON.parse(event.data);
    if (points.map(add).some(Boolean)) loadSoon();
    if (!progress(points.at(-1).data)) refreshSoon();
    drawSoon();
  });
  source.addEventListener("changed", (event) => {
    lastSaid = JSON.parse(event.data).text;
    saySoon();
    refreshSoon();
  });
  source.addEventListener("end", (event) => {
    over = true;
    close();
    if (JSON.parse(event.data).why === "signed-out") location.reload();
    else { loadSoon(); refreshSoon(); }
  });
}

function close() {
  source?.close();
  source = null;
}

// One connection for each page that is looked at: browsers have six for a server.
addEventListener("pagehide", close);
addEventListener("pageshow", listen);
document.addEventListener("visibilitychange", () => (document.hidden ? close() : listen()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => curves && draw());

const place_of_controls = document.getElementById("controls");
load().then(() => {
  if (!curves?.charts.length && !("live" in section.dataset)) return;
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
  if (!("live" in section.dataset)) return;
  const hold = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: "Hold still" });
  hold.setAttribute("aria-pressed", "false");
  hold.addEventListener("click", () => {
    held = !held;
    hold.setAttribute("aria-pressed", String(held));
    if (held) close();
    else listen();
  });
  place_of_controls.append(hold);
  listen();
});
