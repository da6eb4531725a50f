// Draws lines with uPlot: colours of the style file, a width that follows the page, values by arrow keys.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const DASHES = [[], [6, 3], [2, 2], [8, 2, 2, 2], [4, 4], [1, 3]];
const HEIGHT = 240;

export function number(value) {
  if (value == null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2);
  if (size < 0.1) return value.toPrecision(3);
  if (size < 10) return value.toFixed(3);
  return value.toLocaleString("en", { maximumFractionDigits: 1 });
}

// A chart in `place`. `lines` are {label, x, y, faint?, colour}; `marks` are places on the x axis.
export class Chart {
  constructor(place, { title, unit, log = false, marks = [], say = () => {} }) {
    Object.assign(this, { place, title, unit, log, marks, say, plot: null, shape: "" });
    place.tabIndex = 0;
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", `${title}: left and right read the values`);
    place.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.plot?.setSize({ width: this.width(), height: HEIGHT })).observe(place);
  }

  width() {
    return Math.max(200, Math.floor(this.place.clientWidth));
  }

  draw(lines) {
    this.lines = lines.filter((line) => line.x.length);
    if (!this.lines.length) return;
    const data = this.lines.length === 1
      ? [this.lines[0].x, this.lines[0].y]
      : uPlot.join(this.lines.map((line) => [line.x, line.y]));
    const shape = JSON.stringify([this.unit, this.log, colour("--text"), this.lines.map((line) => [line.label, line.faint])]);
    if (this.plot && shape === this.shape) {
      this.plot.setData(data);
      return;
    }
    this.shape = shape;
    this.plot?.destroy();
    this.place.replaceChildren();
    this.plot = new uPlot(this.options(), data, this.place);
    this.plot.root.setAttribute("aria-hidden", "true");
  }

  options() {
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    const series = this.lines.map((line) => ({
      label: line.label,
      stroke: colour(`--series-${(line.colour % 6) + 1}`),
      width: line.faint ? 1 : 2,
      alpha: line.faint ? 0.35 : 1,
      dash: DASHES[line.colour % 6],
      spanGaps: true,
      points: { show: line.x.length < 40 },
      value: (_, value) => number(value),
    }));
    return {
      width: this.width(),
      height: HEIGHT,
      scales: { x: { time: false }, y: this.log ? { distr: 3 } : {} },
      axes: [{ ...axis, label: this.unit, labelSize: 18, size: 36 }, { ...axis, size: 64, values: (_, ticks) => ticks.map((tick) => (tick == null ? "" : String(+tick.toPrecision(4)))) }],
      series: [{ label: this.unit, value: (_, value) => number(value) }, ...series],
      cursor: { drag: { x: true, y: false } },
      hooks: { draw: [(plot) => this.drawMarks(plot)] },
    };
  }

  drawMarks(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = colour("--soft");
    ctx.setLineDash([4, 4]);
    for (const mark of this.marks) {
      const x = Math.round(plot.valToPos(mark, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }

  key(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || !this.plot) return;
    event.preventDefault();
    const { data } = this.plot;
    const last = data[0].length - 1;
    this.at = Math.min(last, Math.max(0, (this.at ?? (move < 0 ? last + 1 : -1)) + move));
    this.plot.setCursor({ left: this.plot.valToPos(data[0][this.at], "x"), top: 10 });
    const values = this.lines
      .map((line, index) => [line.label, data[index + 1][this.at]])
      .filter(([, value]) => value != null)
      .map(([label, value]) => `${label} ${number(value)}`);
    this.say(`${this.unit} ${number(data[0][this.at])}: ${values.join(", ")}`);
  }
}

// Controls above charts; returns {x, smoothing, log}, and calls `change` with the new ones at each change.
export function controls(place, { smoothing, epochs, change, first = "step" }) {
  const state = { x: first, smoothing, log: false };
  const labelled = (text, input) => {
    const label = document.createElement("label");
    label.append(`${text} `, input);
    place.append(label);
    return input;
  };
  const select = document.createElement("select");
  for (const [value, text] of [["step", "step"], ["epoch", "epoch"], ["time", "time"]]) {
    if (value === "epoch" && !epochs) continue;
    select.append(new Option(text, value, value === first, value === first));
  }
  labelled("Across:", select).addEventListener("change", () => change({ ...Object.assign(state, { x: select.value }) }));
  const range = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 0.99, step: 0.01, value: smoothing });
  labelled("Smoothing:", range).addEventListener("change", () => change({ ...Object.assign(state, { smoothing: +range.value }) }));
  const log = Object.assign(document.createElement("input"), { type: "checkbox" });
  labelled("Logarithmic loss:", log).addEventListener("change", () => change({ ...Object.assign(state, { log: log.checked }) }));
  place.hidden = false;
  return { ...state };
}

// The places of a line's points across: by step, epoch, or minutes.
export function across(line, x, curves) {
  if (x === "time") return line.seconds.map((seconds) => seconds / 60);
  if (x === "epoch") return line.step.map((step) => (step * curves.epochs) / curves.total_steps);
  return line.step;
}

export const unit = (x) => ({ step: "Step", epoch: "Epoch", time: "Minutes" })[x];
