// Several jobs over one another.

import { Chart, across, controls, unit } from "./charts.js";

const jobs = [...document.querySelectorAll("tr[data-job]")].map((row) => ({ id: row.dataset.job, title: row.dataset.title }));
const plot = document.getElementById("plot");
let curves = [];
let state = { x: "epoch", smoothing: 0.8, log: false };

async function load() {
  curves = await Promise.all(jobs.map(async ({ id }) => {
    const response = await fetch(`/ui/fine-tunes/${id}/curves?smoothing=${state.smoothing}`, { headers: { accept: "application/json" } });
    if (response.status === 401) location.reload();
    return response.ok ? response.json() : null;
  }));
  draw();
}

let chart = null;

function draw() {
  chart ??= new Chart(plot, { title: "Loss" });
  const complete = curves.every((one) => one?.epochs && one?.total_steps);
  const by = state.x === "epoch" && !complete ? "step" : state.x;
  Object.assign(chart, { unit: unit(by), log: state.log });
  chart.draw(curves.flatMap((one, colour) => {
    const loss = one?.charts.find((other) => other.id === "loss");
    return (loss?.lines ?? []).filter((line) => line.name !== "valid_loss").map((line) => ({
      // The marks keep a title that runs from right to left from turning the rest around.
      label: `\u2068${jobs[colour].title}\u2069 (${jobs[colour].id.slice(-6)}): ${line.label}`,
      x: across(line, by, one),
      y: line.smooth.length ? line.smooth : line.value,
      colour,
      faint: line.name !== "train_loss",
    }));
  }));
}

if (plot) {
  load().then(() => {
    state = controls(document.getElementById("controls"), {
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
