// Draws the table of the calculator as lines.

import { Chart } from "./charts.js";

const table = document.getElementById("points");
const plot = document.getElementById("plot");
const said = document.getElementById("said");

if (table && plot) {
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => +cell.dataset.value));
  const column = (index) => rows.map((row) => row[index]);
  const marks = [...plot.querySelectorAll("[data-mark]")].map((line) => +line.dataset.mark);
  const chart = new Chart(plot, { title: "Cost a day", unit: heads[0], marks, say: (text) => (said.textContent = text) });
  const lines = heads.slice(1).map((label, index) => ({ label, x: column(0), y: column(index + 1), colour: index }));
  chart.draw(lines);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart.draw(lines));
}
