// Several jobs over one another: their losses at first, or another figure.

import { Chart, across, controls, unit } from "./charts.js";

const jobs = [...document.querySelectorAll("tr[data-job]")].map((row) => ({ id: row.dataset.job, title: row.dataset.title }));
const plot = document.getElementById("plot");
let curves = [];
let state = { x: "epoch", smoothing: 0.8, log: false };
// What is drawn: "loss", or the name of a figure.
let shown = "loss";

async function load() {
  curves = await Promise.all(jobs.map(async ({ id }) => {
    const response = await fetch(`/ui/fine-tunes/${id}/curves?smoothing=${state.smoothing}`, { headers: { accept: "application/json" } });
    if (response.status === 401) location.reload();
    return response.ok ? response.json() : null;
  }));
  offer();
  draw();
}

// Beside the losses, every other figure that a job has can be looked at.
const picker = document.createElement("select");
picker.addEventListener("change", () => { shown = picker.value; draw(); });

function offer() {
  const charts = curves.flatMap((one) => one?.charts ?? []).filter(({ id }) => id !== "loss");
  // Names of classification metrics are short: that of their chart stands before them.
  const label = (chart, line) => (chart.id === "classes" ? `${chart.title}: ${line.label}` : line.label);
  const names = new Map(charts.flatMap((chart) => chart.lines.map((line) => [line.name, label(chart, line)])));
  picker.replaceChildren(...[["loss", "Loss"], ...names].map(([name, text]) => new Option(text, name)));
  picker.value = shown;
}

// The lines of a job that are drawn: that of training, and a faint one of the whole validation file, or the figure.
function linesOf(one) {
  const charts = (one?.charts ?? []).filter(({ id }) => shown !== "loss" || id === "loss");
  const isShown = ({ name }) => (shown === "loss" ? name !== "valid_loss" : name === shown);
  return charts.flatMap(({ lines }) => lines.filter(isShown));
}

let chart = null;

function draw() {
  chart ??= new Chart(plot, { title: "Figures of the jobs" });
  const complete = curves.every((one) => one?.epochs && one?.total_steps);
  const by = state.x === "epoch" && !complete ? "step" : state.x;
  Object.assign(chart, { unit: unit(by), log: state.log && shown === "loss" });
  chart.draw(curves.flatMap((one, colour) => linesOf(one).map((line) => ({
    // The marks keep a title that runs from right to left from turning the rest around.
    label: `\u2068${jobs[colour].title}\u2069 (${jobs[colour].id.slice(-6)}): ${line.label}`,
    x: across(line, by, one),
    y: line.smooth.length ? line.smooth : line.value,
    colour,
    faint: line.name === "full_valid_loss",
  }))));
}

if (plot) {
  load().then(() => {
    const place = document.getElementById("controls");
    const label = document.createElement("label");
    label.append("Figure: ", picker);
    place.append(label);
    state = controls(place, {
      smoothing: state.smoothing,
      epochs: 1,
      first: "epoch",
      change: (next) => {
        const anew = next.smoothing !== state.smoothing;
        state = next;
        if (anew) load();
        else draw();
      },
    });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
