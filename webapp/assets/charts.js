// Charts of a stage's events. Points are added to the drawing, so that nothing flickers and zoom is kept.

import { Lost, address } from "./ask.js";
import { el } from "./draw.js";

const MOST_POINTS = 2000; // a line; more are thinned by halves
const DRAW_MS = 2000;
const QUIETLY = { displayModeBar: false, responsive: true };

// Each chart: its lines by the keys of events, over training steps or over the time of the stage.
const CHARTS = [
  { id: "loss", title: "Loss", over: "step", lines: [
    { key: "loss", name: "Training", color: "--lab-accent" },
    { key: "eval_loss", name: "Held-out", color: "--lab-second", mode: "lines+markers", dash: "dot" }] },
  { id: "rate", title: "Learning rate", over: "step", lines: [{ key: "learning_rate", name: "Learning rate", color: "--lab-accent" }],
    axis: { exponentformat: "e", rangemode: "tozero" } },
  { id: "speed", title: "Tokens per second", over: "step", lines: [{ key: "tokens_per_second", name: "Tokens/s", color: "--lab-accent" }],
    axis: { rangemode: "tozero" } },
  { id: "gpu", title: "GPU utilization, %", over: "elapsed", lines: [{ key: "gpu_utilization", name: "GPU", color: "--lab-accent" }],
    axis: { range: [0, 102] } },
  { id: "memory", title: "Memory, GB", over: "elapsed", axis: { rangemode: "tozero" }, lines: [
    { key: "memory_bytes", name: "This stage", color: "--lab-accent", scale: 1e-9 },
    { key: "host_memory_bytes", name: "Whole machine", color: "--lab-soft", scale: 1e-9, dash: "dot" },
    { key: "gpu_memory_used_bytes", name: "GPU", color: "--lab-second", scale: 1e-9 }] },
];
const BY_STEP = new Set(CHARTS.filter(({ over }) => over === "step").flatMap(({ lines }) => lines.map(({ key }) => key)));
const AXES = { step: "Step", elapsed: "Minutes" };

class Series {
  constructor() {
    this.x = [];
    this.y = [];
    this.stride = 1;
    this.seen = 0;
    this.thinned = 0; // how often
  }

  add(x, y) {
    if (this.seen++ % this.stride) return;
    this.x.push(x);
    this.y.push(y);
    if (this.x.length < MOST_POINTS) return;
    this.x = this.x.filter((_, i) => i % 2 === 0);
    this.y = this.y.filter((_, i) => i % 2 === 0);
    this.stride *= 2;
    this.thinned++;
  }

  // Only the points up to x.
  upTo(x) {
    const some = Object.assign(new Series(), { stride: this.stride, thinned: this.thinned });
    const kept = this.x.map((value) => value <= x);
    [some.x, some.y] = [this.x, this.y].map((values) => values.filter((_, i) => kept[i]));
    some.seen = some.x.length * some.stride;
    return some;
  }
}

let tracks = 0;

// The data of one stage's events.
export class Track {
  constructor(stage) {
    this.stage = stage;
    this.offset = 0;
    this.whole = null; // when the stage ended of which all events were read
    this.uid = ++tracks;
    this.reset();
  }

  reset() {
    this.series = new Map();
    this.waiting = null; // in a new attempt, events at step 0 until it is known whether it resumes
    this.step = 0;
    this.words = "";
  }

  // Another attempt starts: time restarts. Whether it resumes the training is not known yet.
  again() {
    const kept = [...this.series].filter(([key]) => BY_STEP.has(key));
    this.reset();
    this.series = new Map(kept);
    if (kept.length) this.waiting = [];
  }

  // The attempt resumes from a checkpoint: later steps are trained again.
  resume(step) {
    const measured = this.waiting ?? [];
    this.waiting = null;
    this.series = new Map([...this.series].map(([key, series]) => [key, BY_STEP.has(key) ? series.upTo(step) : series]));
    for (const event of measured) this.add(event, (key) => !this.series.has(key));
    this.step = step;
  }

  // The attempt trains from the start: older points belong to another training.
  restart() {
    const measured = this.waiting;
    this.waiting = null;
    this.series = new Map([...this.series].filter(([key]) => !BY_STEP.has(key)));
    for (const event of measured) this.add(event);
  }

  take(event) {
    if (event.attempt) this.again();
    if (typeof event.resumed === "number") this.resume(event.resumed);
    if (typeof event.step === "number") this.step = event.step;
    if (this.waiting && event.step > 0) this.restart();
    if (this.waiting && event.step === 0) {
      this.waiting.push(event);
      this.add(event, (key) => !BY_STEP.has(key));
    } else this.add(event);
    if (typeof event.loss === "number") this.words = words(event, this.step);
  }

  add(event, isWanted = () => true) {
    for (const { over, lines } of CHARTS) {
      const x = over === "step" ? event.step ?? this.step : event.elapsed / 60;
      for (const { key, scale = 1 } of lines) {
        if (typeof event[key] !== "number" || !isFinite(x) || !isWanted(key)) continue;
        if (!this.series.has(key)) this.series.set(key, new Series());
        this.series.get(key).add(x, event[key] * scale);
      }
    }
  }

  has(chart) {
    return chart.lines.some(({ key }) => this.series.has(key));
  }
}

function words(event, step) {
  const said = [`step ${step}${event.total_steps ? ` of ${event.total_steps}` : ""}`, `loss ${event.loss.toFixed(3)}`];
  if (typeof event.tokens_per_second === "number") said.push(`${Math.round(event.tokens_per_second)} tokens/s`);
  return said.join(" · ");
}

// All charts of a run. Those of training stay visible during later stages.
export class Charts {
  constructor() {
    this.now = el("p", { class: "lab-now" });
    this.charts = CHARTS.map((chart) => new Chart(chart));
    this.root = el("section", { class: "lab-charts", "aria-label": "Charts", hidden: true },
      this.now, ...this.charts.map((chart) => chart.root));
  }

  show(tracks, shown) {
    const all = [...tracks.values()];
    const own = tracks.get(shown);
    for (const chart of this.charts) {
      const fits = (track) => track?.has(chart.about);
      chart.show(fits(own) ? own : chart.about.over === "step" ? all.findLast(fits) : null);
    }
    this.root.hidden = this.charts.every((chart) => chart.root.hidden);
    const said = (own?.words ? own : all.findLast((track) => track.words))?.words ?? "";
    if (this.now.textContent !== said) this.now.textContent = said;
  }
}

class Chart {
  constructor(about) {
    this.about = about;
    this.plot = el("div", { class: "lab-plot", role: "img", "aria-label": `${about.title} by ${AXES[about.over].toLowerCase()}`,
      title: "Drag to zoom, double-click to see all" });
    this.root = el("figure", { class: "lab-chart", "data-chart": about.id, hidden: true }, el("figcaption", {}, about.title), this.plot);
    this.inSight = false;
    this.last = 0;
    new IntersectionObserver(([entry]) => { this.inSight = entry.isIntersecting; this.later(); }).observe(this.root);
    new ResizeObserver(() => this.drawn && this.plot.clientWidth && window.Plotly.Plots.resize(this.plot)).observe(this.root);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.drawn = null; this.later(); });
  }

  show(track) {
    this.track = track ?? null;
    this.root.hidden = !this.track;
    this.later();
  }

  // At most every two seconds, and not while hidden.
  later() {
    if (!this.track || !this.inSight || document.hidden || this.timer || this.isDrawn()) return;
    this.timer = setTimeout(async () => {
      try {
        await this.draw();
      } catch (error) {
        if (!(error instanceof Lost)) throw error; // tried again when more is known
      } finally {
        this.timer = null;
      }
    }, Math.max(this.last + DRAW_MS - performance.now(), 0));
  }

  get lines() {
    return this.about.lines.filter(({ key }) => this.track.series.has(key));
  }

  isDrawn() {
    return this.isSame() && this.lines.every(({ key }) => this.drawn.counts.get(key) === this.track.series.get(key).x.length);
  }

  // Whether points only need to be appended.
  isSame() {
    const { drawn, track } = this;
    return drawn?.series === track.series && this.lines.every(({ key }) => drawn.thinned.get(key) === track.series.get(key).thinned);
  }

  async draw() {
    const Plotly = await loadPlotly();
    const { track } = this; // another one may be shown once this is drawn
    if (!track) return;
    this.last = performance.now();
    const of = (what) => new Map(this.lines.map(({ key }) => [key, what(track.series.get(key))]));
    const drawn = { series: track.series, counts: of((s) => s.x.length), thinned: of((s) => s.thinned) };
    if (this.isSame()) await this.extend(Plotly);
    else await Plotly.react(this.plot, this.lines.map((line) => this.trace(line)), this.layout(), QUIETLY);
    this.drawn = drawn;
  }

  async extend(Plotly) {
    const since = this.lines.map(({ key }) => [this.track.series.get(key), this.drawn.counts.get(key)]);
    const some = since.map((_, index) => index).filter((index) => since[index][0].x.length > since[index][1]);
    if (!some.length) return;
    const fresh = (axis) => some.map((index) => since[index][0][axis].slice(since[index][1]));
    await Plotly.extendTraces(this.plot, { x: fresh("x"), y: fresh("y") }, some);
  }

  trace({ key, name, color, mode = "lines", dash }) {
    const { x, y } = this.track.series.get(key);
    return { type: "scatter", mode, name, x: [...x], y: [...y], line: { color: paint(this.root, color), width: 2, dash }, marker: { size: 6 } };
  }

  layout() {
    const line = paint(this.root, "--lab-line");
    const axis = { gridcolor: line, zerolinecolor: line, automargin: true };
    return {
      ...look(this.root), margin: { l: 46, r: 10, t: 8, b: 36 }, height: 210, hovermode: "x unified",
      uirevision: this.track.uid, // a zoom stays as long as it is the same stage
      showlegend: this.about.lines.length > 1,
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "bottom" },
      xaxis: { ...axis, title: { text: AXES[this.about.over], standoff: 6 } }, yaxis: { ...axis, ...this.about.axis },
    };
  }
}

const paint = (node, name) => getComputedStyle(node).getPropertyValue(name).trim();

function look(node) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: paint(node, "--lab-text") },
    hoverlabel: { bgcolor: paint(node, "--lab-panel"), font: { color: paint(node, "--lab-text") } },
  };
}

let plotly = null;
export function loadPlotly() {
  plotly ??= new Promise((resolve, reject) => {
    const script = el("script", { src: address("plotly.min.js?v=1") });
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => { plotly = null; script.remove(); reject(new Lost("plotly")); };
    document.head.append(script);
  });
  return plotly;
}

// Quality against size: a point for each way to quantize, in one field for each of the two texts.
export async function scatter(plot, points) {
  plot.hidden = !points.length;
  if (!points.length) return window.Plotly?.purge(plot);
  const trace = (key, color, symbol, place) => ({
    type: "scatter", mode: "markers+text", xaxis: `x${place}`, yaxis: `y${place}`,
    x: points.map((p) => p.bytes / 1e6), y: points.map((p) => p[key]), text: points.map((p) => p.name),
    error_y: key === "data" && points.some((p) => p.data_range) ? {
      type: "data", symmetric: false, thickness: 1.5, width: 4, color: paint(plot, color),
      array: points.map((p) => (p.data_range ? p.data_range[1] - p.data : 0)),
      arrayminus: points.map((p) => (p.data_range ? p.data - p.data_range[0] : 0)),
    } : undefined,
    textposition: "middle right", cliponaxis: false, marker: { size: 10, color: paint(plot, color), symbol }, hovertemplate: "%{text}: %{y:.4g} at %{x:.1f} MB<extra></extra>",
  });
  const axis = { gridcolor: paint(plot, "--lab-line"), zeroline: false, automargin: true };
  const size = { ...axis, rangemode: "tozero", title: { text: "Size of the exported model, MB" } };
  const title = (text, x) => ({ text, x, y: 1.02, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false });
  const Plotly = await loadPlotly();
  await Plotly.react(plot, [trace("general", "--lab-accent", "circle", ""), trace("data", "--lab-second", "diamond", "2")], {
    ...look(plot), margin: { l: 60, r: 70, t: 28, b: 44 }, height: 320, uirevision: "kept", showlegend: false,
    grid: { rows: 1, columns: 2, pattern: "independent", xgap: 0.2 },
    annotations: [title("General text", 0), title("Your data", 0.55)],
    xaxis: size, xaxis2: size,
    yaxis: { ...axis, title: { text: "Perplexity (lower is better)" } }, yaxis2: axis,
  }, QUIETLY);
}
