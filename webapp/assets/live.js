// The run on the Lab tab, kept up to date by asking our own routes again and again. Asking by byte offset
// survives a dropped connection, a restart of the server, and proxies that buffer.

import { el, seconds, statusBadge } from "./draw.js";

const POLL_MS = 500;
const HIDDEN_MS = 5000;
const LOST_AFTER = 2; // answers missed before the page says so
const TIMEOUT_MS = 15000;
const CANCEL_TRIES = 60; // half a minute: a stage is given some time to end by itself
const MOST_LINES = 5000;
const FIRST_BYTES = 256 * 1024;
const ENDED = ["done", "failed", "canceled", "interrupted"];
const RETRYABLE = ["failed", "canceled", "interrupted"];
const ASK_CANCEL = "Cancel this run? Finished stages are kept and a retry goes on from there.";
const HOME_TITLE = "Olive Lab";

const address = (path) => new URL(path, document.baseURI);
const modelOf = (run) => address(`runs/${encodeURIComponent(run)}/model.zip`);

class Lost extends Error {}

async function ask(path, options = {}) {
  let reply;
  try {
    reply = await fetch(address(path), { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS), ...options });
  } catch (error) {
    throw new Lost(String(error));
  }
  if (reply.status >= 500) throw new Lost(`status ${reply.status}`);
  return reply;
}

// -- the log: a ring of lines, added to and never drawn again ----------------------------------------

class Log {
  constructor() {
    this.follow = el("input", { type: "checkbox", id: "log-follow", onchange: () => this.hold() });
    this.follow.checked = true;
    this.find = el("input", { type: "search", placeholder: "Find in log", "aria-label": "Find in log", oninput: () => this.filter() });
    this.download = el("a", { class: "lab-button", download: true }, "Download");
    this.title = el("h3", {}, "Log");
    this.lines = el("div", { class: "lab-lines", role: "log", "aria-live": "off", "aria-label": "Log", tabindex: "0",
      onscroll: () => this.scrolled() });
    new ResizeObserver(() => this.hold()).observe(this.lines);
    this.root = el("section", { class: "lab-log" },
      el("div", { class: "lab-bar" }, this.title, this.find,
        el("label", { for: "log-follow" }, this.follow, " Follow"), this.download),
      this.lines);
    this.clear();
  }

  clear() {
    this.lines.replaceChildren();
    this.top = 0;
    this.open = null; // the line a progress bar is still writing over
    this.returned = false; // whether the last piece ended with a carriage return
  }

  omitted(bytes) {
    const size = bytes > 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.ceil(bytes / 1e3)} kB`;
    this.lines.append(el("div", { class: "lab-omitted" }, `The first ${size} are not shown; download the log to read them.`));
  }

  add(text) {
    const cut = lastLines(text, MOST_LINES);
    if (cut > 0) this.clear(); // what was there would leave the ring anyway
    const fresh = document.createDocumentFragment();
    for (const [, part, end] of text.slice(cut).replace(/\x1b\[[0-9;?]*[A-Za-z]/g, "").matchAll(/([^\r\n]*)(\r\n|\n|\r|$)/g)) {
      if (part === "" && end === "") continue;
      if (this.returned && part === "" && end === "\n") { // a CR LF that was cut in two
        this.open = null;
        this.returned = false;
        continue;
      }
      if (this.open && !(this.returned && part === "")) this.open.textContent = this.returned ? part : this.open.textContent + part;
      else if (!this.open) this.open = fresh.appendChild(this.line(part));
      this.returned = end === "\r";
      if (end === "\n" || end === "\r\n") this.open = null;
    }
    this.lines.append(fresh);
    while (this.lines.childElementCount > MOST_LINES) this.lines.firstElementChild.remove();
    this.hold();
  }

  line(text) {
    const node = document.createElement("div");
    node.textContent = text;
    node.hidden = this.find.value !== "" && !text.toLowerCase().includes(this.find.value.toLowerCase());
    return node;
  }

  filter() {
    const wanted = this.find.value.toLowerCase();
    for (const node of this.lines.children) node.hidden = wanted !== "" && !node.textContent.toLowerCase().includes(wanted);
    this.hold();
  }

  hold() {
    if (this.follow.checked) this.lines.scrollTop = this.lines.scrollHeight;
  }

  // Scrolling up lets go of the end; reaching it again takes hold of it.
  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.lines;
    if (scrollHeight - scrollTop - clientHeight < 24) this.follow.checked = true;
    else if (scrollTop < this.top) this.follow.checked = false;
    this.top = scrollTop;
  }
}

// Where the last `count` lines begin.
function lastLines(text, count) {
  let at = text.length;
  for (let n = 0; n <= count; n++) {
    at = at > 0 ? text.lastIndexOf("\n", at - 1) : -1;
    if (at < 0) return 0;
  }
  return at + 1;
}

// -- the loss chart: at most MOST_POINTS points a line, thinned by halves ----------------------------

const MOST_POINTS = 2000;

class Series {
  constructor() {
    this.x = [];
    this.y = [];
    this.stride = 1;
    this.seen = 0;
  }

  // Returns whether the point is kept.
  add(x, y) {
    if (this.seen++ % this.stride) return false;
    this.x.push(x);
    this.y.push(y);
    if (this.x.length < MOST_POINTS) return true;
    this.x = this.x.filter((_, i) => i % 2 === 0);
    this.y = this.y.filter((_, i) => i % 2 === 0);
    this.stride *= 2;
    this.thinned = true;
    return true;
  }
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

class Chart {
  constructor() {
    this.plot = el("div", { class: "lab-plot", role: "img", "aria-label": "Loss by training step" });
    this.now = el("p", { class: "lab-now" });
    this.root = el("section", { class: "lab-chart", hidden: true }, el("div", { class: "lab-bar" }, el("h3", {}, "Loss"), this.now), this.plot);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.restyle());
  }

  style() {
    const color = (name) => getComputedStyle(this.root).getPropertyValue(name).trim();
    const axis = { gridcolor: color("--lab-line"), zerolinecolor: color("--lab-line"), automargin: true };
    return {
      margin: { l: 50, r: 12, t: 8, b: 40 }, height: 280, hovermode: "x unified", uirevision: "kept",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: color("--lab-text") },
      hoverlabel: { bgcolor: color("--lab-panel"), font: { color: color("--lab-text") } },
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1.02, yanchor: "bottom" },
      xaxis: { ...axis, title: { text: "Step" } }, yaxis: { ...axis, title: { text: "Loss" } },
    };
  }

  traces(track) {
    const color = (name) => getComputedStyle(this.root).getPropertyValue(name).trim();
    return [
      { type: "scatter", mode: "lines", name: "Training", x: [...track.loss.x], y: [...track.loss.y], line: { color: color("--lab-accent"), width: 2 } },
      { type: "scatter", mode: "lines+markers", name: "Held-out", x: [...track.held.x], y: [...track.held.y],
        line: { color: color("--lab-second"), width: 1.5, dash: "dot" }, marker: { size: 7 } },
    ];
  }

  async show(track) {
    const any = Boolean(track && (track.loss.x.length || track.held.x.length));
    this.root.hidden = !any;
    if (!any) return;
    this.now.textContent = track.words;
    if (this.track === track && !track.fresh.length && !track.thinned) return;
    const Plotly = await loadPlotly();
    if (this.track !== track || track.thinned) {
      await Plotly.react(this.plot, this.traces(track), this.style(), { displayModeBar: false, responsive: true });
    } else {
      for (const [index, x, y] of track.fresh) this.queue(index, x, y);
      await this.flush(Plotly);
    }
    this.track = track;
    track.fresh = [];
    track.thinned = false;
  }

  queue(index, x, y) {
    this.queued ??= [[[], []], [[], []]];
    this.queued[0][index].push(x);
    this.queued[1][index].push(y);
  }

  async flush(Plotly) {
    const queued = this.queued;
    this.queued = null;
    if (queued) await Plotly.extendTraces(this.plot, { x: queued[0], y: queued[1] }, [0, 1]);
  }

  restyle() {
    if (this.track) window.Plotly?.react(this.plot, this.traces(this.track), this.style(), { displayModeBar: false, responsive: true });
  }
}

// Quality against size: a point for each way to quantize, in one field for each of the two texts.
export async function scatter(plot, points) {
  plot.hidden = !points.length;
  if (!points.length) return window.Plotly?.purge(plot);
  const color = (name) => getComputedStyle(plot).getPropertyValue(name).trim();
  const trace = (key, paint, symbol, place) => ({
    type: "scatter", mode: "markers+text", xaxis: `x${place}`, yaxis: `y${place}`,
    x: points.map((p) => p.bytes / 1e6), y: points.map((p) => p[key]), text: points.map((p) => p.name),
    textposition: "middle right", cliponaxis: false, marker: { size: 10, color: color(paint), symbol }, hovertemplate: "%{text}: %{y:.4g} at %{x:.1f} MB<extra></extra>",
  });
  const axis = { gridcolor: color("--lab-line"), zeroline: false, automargin: true };
  const size = { ...axis, rangemode: "tozero", title: { text: "Size of the exported model, MB" } };
  const title = (text, x) => ({ text, x, y: 1.02, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false });
  const Plotly = await loadPlotly();
  await Plotly.react(plot, [trace("general", "--lab-accent", "circle", ""), trace("data", "--lab-second", "diamond", "2")], {
    margin: { l: 60, r: 70, t: 28, b: 44 }, height: 320, uirevision: "kept", showlegend: false,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: color("--lab-text") },
    grid: { rows: 1, columns: 2, pattern: "independent", xgap: 0.2 },
    annotations: [title("General text", 0), title("Your data", 0.55)],
    xaxis: size, xaxis2: size,
    yaxis: { ...axis, title: { text: "Perplexity (lower is better)" } }, yaxis2: axis,
  }, { displayModeBar: false, responsive: true });
}

// What is known of one stage's events.
class Track {
  constructor() {
    this.offset = 0;
    this.reset();
  }

  reset() {
    this.loss = new Series();
    this.held = new Series();
    this.fresh = [];
    this.thinned = true; // drawn whole the first time
    this.words = "";
    this.step = 0;
  }

  take(event) {
    if (event.attempt) this.reset();
    if (typeof event.step === "number") this.step = event.step;
    this.point(0, this.loss, event.loss);
    this.point(1, this.held, event.eval_loss);
    const words = [];
    if (typeof event.loss === "number") words.push(`step ${this.step}${event.total_steps ? ` of ${event.total_steps}` : ""}`, `loss ${event.loss.toFixed(3)}`);
    if (typeof event.tokens_per_second === "number") words.push(`${Math.round(event.tokens_per_second)} tokens/s`);
    if (typeof event.gpu_utilization === "number") words.push(`GPU ${event.gpu_utilization} %`);
    if (typeof event.gpu_memory_bytes === "number") words.push(`${(event.gpu_memory_bytes / 1e9).toFixed(1)} GB on it`);
    if (words.length) this.words = words.join(" · ");
  }

  point(index, series, y) {
    if (typeof y !== "number") return;
    if (series.add(this.step, y)) this.fresh.push([index, this.step, y]);
    if (series.thinned) this.thinned = !(series.thinned = false);
  }
}

// -- the run ------------------------------------------------------------------------------------------

class RunView {
  constructor(root) {
    this.root = root;
    this.log = new Log();
    this.chart = new Chart();
    this.name = el("h2", { tabindex: "-1" });
    this.state = el("span");
    this.about = el("p", { class: "lab-about" });
    this.note = el("p", { class: "lab-trouble", role: "status" });
    this.cancel = el("button", { type: "button", class: "lab-button", id: "run-cancel", onclick: () => this.askCancel() }, "Cancel");
    this.retry = el("button", { type: "button", class: "lab-button is-primary", id: "run-retry", onclick: () => this.act("retry") }, "Retry");
    this.compare = el("button", { type: "button", class: "lab-button is-primary", id: "run-compare", onclick: () => { preferredRun = this.id; go("compare"); } }, "Compare answers");
    this.take = el("a", { class: "lab-button", id: "run-download", download: true }, "Download the model");
    this.stages = el("ol", { class: "lab-stages", "aria-label": "Stages" });
    this.rows = new Map();
    this.dialog = this.confirmation();
    this.root.append(
      el("div", { class: "lab-head" }, el("div", {}, this.name, this.about), this.state, this.compare, this.take, this.retry, this.cancel),
      this.note, this.stages, this.chart.root, this.log.root, this.dialog);
    this.root.hidden = true;
    document.addEventListener("visibilitychange", () => this.wake());
  }

  confirmation() {
    const dialog = el("dialog", { class: "lab-dialog", "aria-label": "Cancel this run?" },
      el("p", {}, ASK_CANCEL),
      el("div", { class: "lab-bar" },
        el("button", { type: "button", class: "lab-button is-danger", id: "cancel-yes", onclick: () => { dialog.close(); this.act("cancel"); } }, "Cancel the run"),
        el("button", { type: "button", class: "lab-button", onclick: () => dialog.close() }, "Let it run")));
    return dialog;
  }

  open(id) {
    this.id = id;
    this.status = null;
    this.shown = null;
    this.pinned = false;
    this.misses = 0;
    this.tracks = new Map();
    this.rows.clear();
    this.stages.replaceChildren();
    this.log.clear();
    this.chart.show(null);
    this.note.textContent = "";
    this.root.hidden = false;
    this.root.setAttribute("data-run", id);
    this.name.textContent = "…";
    const url = new URL(location.href);
    url.searchParams.set("run", id);
    history.replaceState(history.state, "", url);
    this.wake();
  }

  wake() {
    if (!this.id) return;
    clearTimeout(this.timer);
    if (this.busy) this.again = true;
    else this.loop();
  }

  async loop() {
    this.busy = true;
    const id = this.id;
    let delay = document.hidden ? HIDDEN_MS : POLL_MS;
    try {
      const more = await this.update(id);
      if (this.misses >= LOST_AFTER) this.note.textContent = "";
      this.misses = 0;
      if (more) delay = 0;
      else if (this.quiet()) delay = HIDDEN_MS;
    } catch (error) {
      if (!(error instanceof Lost)) throw error;
      this.misses += 1;
      if (this.misses >= LOST_AFTER) this.note.textContent = "Connection lost, retrying…";
    } finally {
      this.busy = false;
    }
    if (this.again || id !== this.id) {
      this.again = false;
      delay = 0;
    }
    this.timer = setTimeout(() => this.loop(), delay);
  }

  // Nothing more will come unless somebody retries or publishes the run.
  quiet() {
    return ENDED.includes(this.status.status) && this.status.stages.every((s) => s.status !== "running" && s.status !== "queued");
  }

  async update(id) {
    const reply = await ask(`runs/${encodeURIComponent(id)}.json`);
    if (id !== this.id) return false;
    if (reply.status === 404) {
      this.id = null;
      this.name.textContent = "No such run";
      this.about.textContent = `${id} is not in this home. The Runs tab lists those that are.`;
      this.state.replaceChildren();
      for (const button of [this.cancel, this.retry, this.compare, this.take]) button.hidden = true;
      this.log.root.hidden = true;
      return false;
    }
    this.draw(await reply.json());
    const more = await this.readEvents(id);
    return (await this.readLog(id)) || more;
  }

  draw(run) {
    this.status = run;
    const shown = this.pinned ? this.shown : run.current;
    if (shown && shown !== this.shown) this.show(shown);
    this.name.textContent = run.name;
    this.state.replaceChildren(run.cancel_requested ? statusBadge("running", "Canceling…") : statusBadge(run.status));
    this.about.textContent = this.words(run);
    this.cancel.hidden = ENDED.includes(run.status) || run.cancel_requested;
    this.retry.hidden = !RETRYABLE.includes(run.status);
    this.compare.hidden = run.status !== "done";
    this.take.hidden = !run.exported;
    this.take.href = modelOf(run.id);
    run.stages.forEach((stage) => this.drawStage(stage, run.now));
    document.title = title(run);
  }

  words(run) {
    const started = run.stages.map((s) => s.started).filter(Boolean);
    const parts = [run.id];
    if (run.status === "queued") parts.push(run.ahead ? `waiting for ${run.ahead} run${run.ahead > 1 ? "s" : ""} before it` : "starting");
    const main = run.stages.filter((s) => s.kind !== "publish");
    const finished = ENDED.includes(run.status) ? Math.max(...main.map((s) => s.finished ?? 0)) : run.now;
    if (started.length && finished) parts.push(seconds(finished - Math.min(...started)));
    return parts.join(" · ");
  }

  drawStage(stage, now) {
    let row = this.rows.get(stage.name);
    if (!row) {
      row = { state: el("span"), words: el("span", { class: "lab-words" }), time: el("span", { class: "lab-time" }),
        bar: el("progress", { max: "1", "aria-label": `Progress of ${stage.name}` }), error: el("p", { class: "lab-error" }) };
      row.button = el("button", { type: "button", onclick: () => this.pin(stage.name) }, el("span", { class: "lab-name" }, stage.name));
      row.root = el("li", {}, row.button, row.state, row.words, row.time, row.bar, row.error);
      this.rows.set(stage.name, row);
      this.stages.append(row.root);
    }
    const facts = stage.facts;
    const running = stage.status === "running";
    const state = stage.reused ? statusBadge(stage.status, "Done, reused") : statusBadge(stage.status);
    if (row.state.textContent !== state.textContent) row.state.replaceChildren(state);
    row.root.dataset.status = stage.status;
    row.root.classList.toggle("is-shown", stage.name === this.shown);
    row.button.setAttribute("aria-pressed", String(stage.name === this.shown));
    row.words.textContent = running ? facts.message ?? "" : "";
    row.time.textContent = timing(stage, now);
    row.bar.hidden = !running;
    if (running && typeof facts.progress === "number") row.bar.value = facts.progress;
    else row.bar.removeAttribute("value");
    row.error.textContent = stage.error ?? "";
    row.error.hidden = !stage.error;
  }

  pin(name) {
    this.pinned = name !== this.status.current;
    this.show(name);
    this.wake();
  }

  show(name) {
    this.shown = name;
    this.offset = null;
    this.drained = false;
    this.log.clear();
    this.log.root.hidden = false;
    this.log.title.textContent = `Log of ${name}`;
    this.log.download.href = address(`runs/${encodeURIComponent(this.id)}/${encodeURIComponent(name)}/log.txt`);
    for (const [stage, row] of this.rows) {
      row.root.classList.toggle("is-shown", stage === name);
      row.button.setAttribute("aria-pressed", String(stage === name));
    }
  }

  async readLog(id) {
    const name = this.shown;
    const stage = this.status.stages.find((s) => s.name === name);
    if (!stage || (stage.status === "queued" && this.offset)) return false;
    if (ENDED.includes(stage.status) && this.drained === stage.finished) return false;
    const from = this.offset ?? -FIRST_BYTES;
    const reply = await ask(`runs/${encodeURIComponent(id)}/${encodeURIComponent(name)}/log?offset=${from}`);
    const text = await reply.text();
    if (id !== this.id || name !== this.shown || !reply.ok) return false;
    const start = Number(reply.headers.get("X-Start-Offset"));
    const next = Number(reply.headers.get("X-Next-Offset"));
    if (this.offset === null && start > 0) this.log.omitted(start);
    if (this.offset !== null && start < this.offset) this.log.clear(); // another file than before
    this.offset = next;
    if (text) this.log.add(text);
    else if (ENDED.includes(stage.status)) this.drained = stage.finished;
    return text.length >= FIRST_BYTES / 2;
  }

  async readEvents(id) {
    let more = false;
    for (const stage of this.status.stages) {
      if (stage.status === "queued") continue;
      if (!this.tracks.has(stage.name)) this.tracks.set(stage.name, new Track());
      const track = this.tracks.get(stage.name);
      if (ENDED.includes(stage.status) && track.drained === (stage.finished ?? 0)) continue;
      const reply = await ask(`runs/${encodeURIComponent(id)}/${encodeURIComponent(stage.name)}/events?offset=${track.offset}`);
      const text = await reply.text();
      if (id !== this.id || !reply.ok) return false;
      track.offset = Number(reply.headers.get("X-Next-Offset"));
      for (const line of text.split("\n")) if (line) track.take(parse(line));
      if (!text && ENDED.includes(stage.status)) track.drained = stage.finished ?? 0;
      more ||= text.length >= FIRST_BYTES / 2;
    }
    const tracks = [...this.tracks.values()].filter((t) => t.loss.x.length || t.held.x.length);
    const shown = this.tracks.get(this.shown);
    await this.chart.show(tracks.includes(shown) ? shown : tracks.at(-1) ?? null);
    return more;
  }

  askCancel() {
    this.dialog.showModal();
  }

  async act(verb) {
    try {
      const reply = await ask(`runs/${encodeURIComponent(this.id)}/${verb}`, { method: "POST" });
      const facts = await reply.json();
      this.note.textContent = facts.error ?? "";
      if (reply.ok) this.pinned = false;
    } catch (error) {
      if (!(error instanceof Lost)) throw error;
      this.note.textContent = "The lab did not answer; try again.";
    }
    this.wake();
  }
}

// A process may be killed in the middle of writing an event.
function parse(line) {
  try {
    return JSON.parse(line);
  } catch {
    return {};
  }
}

function timing(stage, now) {
  if (stage.status === "running") {
    const spent = seconds(now - stage.started);
    const eta = stage.facts.eta_seconds;
    return typeof eta === "number" ? `${spent} · about ${seconds(Math.round(eta))} left` : spent;
  }
  if (stage.status === "queued") return "";
  return seconds(stage.seconds ?? (stage.finished && stage.started ? stage.finished - stage.started : null));
}

function title(run) {
  const running = run.stages.find((s) => s.status === "running");
  if (running) {
    const percent = typeof running.facts.progress === "number" ? `${Math.round(100 * running.facts.progress)}% ` : "";
    return `${percent}${running.name} · ${run.name} – ${HOME_TITLE}`;
  }
  return `${run.status} · ${run.name} – ${HOME_TITLE}`;
}

// -- what the page calls ------------------------------------------------------------------------------

let view = null;
let wanted = null;
let preferredRun = null;
let arrived = false;

export function mount(root) {
  view = new RunView(root);
  if (wanted) view.open(wanted);
}

function show(id) {
  wanted = id;
  if (view && view.id !== id) view.open(id);
}

export function open(id) {
  if (!id) return;
  show(id);
  go("lab");
}

// Choose a tab, as a click does; right after loading its button may not be there yet.
export function go(name, tries = 100) {
  const button = document.getElementById(`tab-${name}-button`);
  if (button) button.click();
  else if (tries) setTimeout(() => go(name, tries - 1), 50);
}

// The page was opened: show its run where it is, and its tab.
export function arrive(first, run) {
  arrived = true;
  if (run) show(run);
  tab(first);
  go(first);
}

// The run a tab should choose: the one the reader came from, else the one chosen there.
export function preferred(chosen, ...rest) {
  const run = preferredRun ?? chosen;
  preferredRun = null;
  return [run, ...rest];
}

// Keep the tab in the address, so that a reload comes back to it.
export function tab(name) {
  if (!arrived) return; // the tab that Gradio shows before the address has been read
  const url = new URL(location.href);
  url.searchParams.set("tab", name);
  history.replaceState(history.state, "", url);
}

export async function cancel(run) {
  if (confirm(ASK_CANCEL)) await ask(`runs/${encodeURIComponent(run)}/cancel`, { method: "POST" });
}

// Wait until a run that is being canceled has ended, or cannot be asked about.
export async function canceled(run) {
  for (let tries = 0; tries < CANCEL_TRIES; tries++) {
    const reply = await ask(`runs/${encodeURIComponent(run)}.json`);
    if (!reply.ok || !(await reply.json()).cancel_requested) return;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

// The exported model of a run. The browser takes it by itself: the page stays, and may be left.
export function take(run) {
  el("a", { href: modelOf(run), download: true }).click();
}

export function download(text, name) {
  const file = `${(name || "recipe").replace(/[^A-Za-z0-9_-]+/g, "-").replace(/^-+|-+$/g, "") || "recipe"}.yaml`;
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type: "application/yaml" })), download: file });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
