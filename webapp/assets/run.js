// One run on the Lab tab, kept up to date by polling our own routes. Polling by byte offset survives a dropped
// connection, a restart of the server, and proxies that buffer.

import { Lost, address, ask, askJson } from "./ask.js";
import { Charts, Track } from "./charts.js";
import { el, put, roughly, seconds, statusBadge } from "./draw.js";
import { Log } from "./log.js";
import { canNotify, notifyButton } from "./toast.js";

// Milliseconds between polls, by the number of answers in a row without news.
const PERIODS_MS = [[3, 220], [10, 500], [Infinity, 1000]];
const LEAST_MS = 50; // from an answer to the next request
const ELSEWHERE_MS = 1000; // another tab of the page is open
const HIDDEN_MS = 5000;
const TICK_MS = 1000;
const ASLEEP_MS = 4000; // a tick so late means that the machine slept
const LATE_MS = 4000; // an answer so late is told
const LOST_AFTER = 2; // answers missed before the page says so
const FIRST_BYTES = 256 * 1024;
const MOST_BEHIND = 32 * 1024 * 1024; // more than that was written meanwhile: begin at the end again
const ENDED = ["done", "failed", "canceled", "interrupted"];
const RETRYABLE = ["failed", "canceled", "interrupted"];
const HOME_TITLE = "Olive Lab";
export const ASK_CANCEL = "Cancel this run? Finished stages are kept, and a retry resumes from there.";

export const runPath = (run) => `runs/${encodeURIComponent(run)}`;
export const modelOf = (run) => address(`${runPath(run)}/model.zip`);

export class RunView {
  // `compare` and `vote` open the tab of that name with a run, `worse` the examples that its adapter is worse on.
  constructor(root, { compare, vote, worse }) {
    this.worse = worse;
    this.root = root;
    this.log = new Log();
    this.charts = new Charts();
    this.name = el("h2", { tabindex: "-1" });
    this.state = el("span");
    this.about = el("p", { class: "lab-about" });
    this.note = el("span", { role: "status" });
    this.age = el("span"); // beside the note: nobody wants it read out each second
    this.cancel = el("button", { type: "button", class: "lab-button", id: "run-cancel", onclick: () => this.dialog.showModal() }, "Cancel");
    this.retry = el("button", { type: "button", class: "lab-button is-primary", id: "run-retry", onclick: () => this.act("retry") }, "Retry");
    this.compare = el("button", { type: "button", class: "lab-button is-primary", id: "run-compare", onclick: () => compare(this.id) }, "Compare answers");
    this.vote = el("button", { type: "button", class: "lab-button", id: "run-vote", onclick: () => vote(this.id) }, "Vote blind");
    this.take = el("a", { class: "lab-button", id: "run-download", download: true }, "Download the model");
    this.notify = notifyButton();
    this.bar = el("progress", { max: "1", "aria-label": "Progress of the run" });
    this.left = el("span", { class: "lab-time" });
    this.whole = el("div", { class: "lab-whole", hidden: true }, this.bar, this.left);
    this.stages = el("ol", { class: "lab-stages", "aria-label": "Stages" });
    this.rows = new Map();
    this.dialog = this.confirmation();
    this.root.append(
      el("div", { class: "lab-head" }, el("div", {}, this.name, this.about), this.state, this.compare, this.vote, this.take, this.retry, this.notify, this.cancel),
      el("p", { class: "lab-trouble" }, this.note, this.age), this.whole, this.stages, this.charts.root, this.log.root, this.dialog);
    this.root.hidden = true;
    document.addEventListener("visibilitychange", () => this.wake());
    for (const event of ["online", "focus", "pageshow"]) addEventListener(event, () => this.wake());
    this.ticked = Date.now();
    setInterval(() => this.tick(), TICK_MS);
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
    this.answered = 0; // when, by this machine's clock
    this.still = 0; // answers in a row without anything new
    this.tracks = new Map();
    this.rows.clear();
    this.stages.replaceChildren();
    this.log.clear();
    this.charts.show(this.tracks, null);
    put(this.note, "");
    this.root.hidden = false;
    this.root.setAttribute("data-run", id);
    put(this.name, "…");
    const url = new URL(location.href);
    url.searchParams.set("run", id);
    history.replaceState(history.state, "", url);
    this.wake();
  }

  // -- asking --------------------------------------------------------------------------------------------

  wake() {
    if (!this.id) return;
    clearTimeout(this.timer);
    this.again = this.busy;
    if (!this.busy) this.loop();
    else if (Date.now() - this.asked > LATE_MS) this.stop.abort(); // over a connection that has died, most likely
  }

  // Once a second: notice that the machine slept, and show how old the data is if no answer comes.
  tick() {
    const now = Date.now();
    if (now - this.ticked > ASLEEP_MS && !document.hidden) this.wake();
    this.ticked = now;
    if (!this.id) return;
    const isLate = this.busy && now - this.asked > LATE_MS;
    if (this.misses < LOST_AFTER && !isLate) return;
    const ago = Math.round((now - this.answered) / 1000);
    put(this.note, "Connection lost, retrying…");
    put(this.age, this.answered ? ` Last update: ${ago < 60 ? `${ago} s` : seconds(ago)} ago.` : "");
    this.isStale = true;
  }

  async loop() {
    this.busy = true;
    this.asked = Date.now();
    this.stop = new AbortController();
    const id = this.id;
    let more = false;
    try {
      more = await this.update(id);
      this.caughtUp();
    } catch (error) {
      if (!(error instanceof Lost)) throw error;
      this.misses += 1;
    } finally { // whatever happened, go on
      this.busy = false;
      const now = more || this.again || id !== this.id;
      this.again = false;
      const wait = Math.max(this.period() - (Date.now() - this.asked), LEAST_MS);
      if (this.id) this.timer = setTimeout(() => this.loop(), now ? 0 : wait);
    }
  }

  caughtUp() {
    this.misses = 0;
    this.answered = Date.now();
    if (!this.isStale) return;
    this.isStale = false;
    put(this.note, "");
    put(this.age, "");
  }

  period() {
    if (document.hidden || (this.status && this.quiet())) return HIDDEN_MS;
    const [, period] = PERIODS_MS.find(([most]) => this.still < most);
    return this.root.offsetParent ? period : ELSEWHERE_MS;
  }

  // Nothing changes any more unless somebody retries or publishes the run.
  quiet() {
    return ENDED.includes(this.status.status) && this.status.stages.every((s) => s.status !== "running" && s.status !== "queued");
  }

  // Poll once and show the answer. Returns whether to poll again at once.
  async update(id) {
    const query = new URLSearchParams();
    if (this.shown) query.set("stage", this.shown);
    if (this.offset !== null && this.shown) query.set("log", this.offset);
    if (this.status) query.set("events", [...this.tracks.values()].filter((t) => t.whole === null).map((t) => `${t.stage}:${t.offset}`).join(","));
    const told = await askJson(`${runPath(id)}/live?${query}`, { signal: this.stop.signal });
    if (id !== this.id) return false;
    if (!told) return this.missing(id);
    if (!told.run) throw new Lost("not an answer of the lab");
    this.draw(told.run);
    const isNew = told.log.stage !== this.shown; // its log was not asked for yet
    const isLogMore = !isNew && this.takeLog(told.log);
    const isEventsMore = this.takeEvents(told.events);
    this.charts.show(this.tracks, this.shown);
    const anything = told.log.text || Object.values(told.events).some((piece) => piece.text);
    this.still = anything ? 0 : this.still + 1;
    return isNew || isLogMore || isEventsMore;
  }

  missing(id) {
    this.id = null;
    put(this.name, "No such run");
    put(this.about, `${id} is not in this home. The Runs tab lists those that are.`);
    this.state.replaceChildren();
    for (const node of [this.cancel, this.retry, this.compare, this.vote, this.take, this.notify, this.whole, this.log.root]) node.hidden = true;
    return false;
  }

  takeLog(piece) {
    if (piece.start < this.offset) this.log.clear(); // another file than before
    else if (piece.size - piece.next > MOST_BEHIND) {
      this.log.clear();
      this.offset = null;
      return true;
    }
    this.offset = piece.next;
    if (piece.text) this.log.add(piece.text, piece.start);
    return piece.next - piece.start >= FIRST_BYTES / 2;
  }

  takeEvents(pieces) {
    let more = false;
    for (const stage of this.status.stages) {
      if (stage.status === "queued") continue;
      let track = this.tracks.get(stage.name);
      const piece = pieces[stage.name];
      if (!track) this.tracks.set(stage.name, (track = new Track(stage.name)));
      if (!ENDED.includes(stage.status) || track.whole !== String(stage.finished)) track.whole = null;
      if (!piece) {
        more ||= track.whole === null;
        continue;
      }
      track.offset = piece.next;
      for (const line of piece.text.split("\n")) if (line) track.take(parse(line));
      if (!piece.text && ENDED.includes(stage.status)) track.whole = String(stage.finished);
      more ||= piece.next - piece.start >= FIRST_BYTES / 2;
    }
    return more;
  }

  // -- showing -------------------------------------------------------------------------------------------

  draw(run) {
    this.status = run;
    const shown = this.pinned ? this.shown : run.current;
    if (shown && shown !== this.shown) this.show(shown);
    put(this.name, run.name);
    const state = run.cancel_requested ? statusBadge("running", "Canceling…") : statusBadge(run.status);
    if (this.state.textContent !== state.textContent) this.state.replaceChildren(state);
    put(this.about, this.words(run));
    this.notify.hidden = ENDED.includes(run.status) || !canNotify();
    this.cancel.hidden = ENDED.includes(run.status) || run.cancel_requested;
    this.retry.hidden = !RETRYABLE.includes(run.status);
    this.compare.hidden = run.status !== "done";
    this.vote.hidden = !run.stages.some(({ name, status }) => name === "evaluate" && status === "done");
    this.take.hidden = !run.exported;
    this.take.href = modelOf(run.id);
    run.stages.forEach((stage) => this.drawStage(stage));
    this.drawWhole(run.progress);
    if (document.title !== title(run)) document.title = title(run);
  }

  words(run) {
    const parts = [run.id];
    if (run.status === "queued") parts.push(run.waits ? run.waits : run.ahead ? `waiting for ${run.ahead} run${run.ahead > 1 ? "s" : ""} ahead of it` : "starting");
    const spent = run.stages.filter((s) => s.kind !== "publish").reduce((sum, stage) => sum + (spentOn(stage) ?? 0), 0);
    if (spent) parts.push(seconds(spent));
    return parts.join(" · ");
  }

  drawWhole(progress) {
    this.whole.hidden = !progress;
    if (!progress) return;
    this.bar.value = progress.fraction;
    put(this.left, [percent(progress.fraction), left(progress)].filter(Boolean).join(" · "));
  }

  drawStage(stage) {
    let row = this.rows.get(stage.name);
    if (!row) {
      row = { state: el("span"), words: el("span", { class: "lab-words" }), time: el("span", { class: "lab-time" }),
        bar: el("progress", { max: "1", "aria-label": `Progress of ${stage.name}` }), verdict: el("p", { class: "lab-verdict" }, el("span"), " "), error: el("p", { class: "lab-error" }) };
      row.button = el("button", { type: "button", onclick: () => this.pin(stage.name) }, el("span", { class: "lab-name" }, stage.name));
      row.root = el("li", {}, row.button, row.state, row.words, row.time, row.bar, row.verdict, row.error);
      row.see = el("button", { type: "button", class: "lab-button", onclick: () => this.worse(this.id) });
      row.verdict.append(row.see);
      this.rows.set(stage.name, row);
      this.stages.append(row.root);
    }
    const facts = stage.facts;
    const running = stage.status === "running";
    const unbegun = stage.status === "canceled" && !stage.started ? "Not run" : undefined;
    const state = statusBadge(stage.status, stage.reused ? "Done, reused" : unbegun);
    if (row.state.textContent !== state.textContent) row.state.replaceChildren(state);
    row.root.dataset.status = stage.status;
    row.root.classList.toggle("is-shown", stage.name === this.shown);
    row.button.setAttribute("aria-pressed", String(stage.name === this.shown));
    put(row.words, running ? facts.message ?? "" : stage.asked ? `on the rows of ${stage.asked}` : "");
    put(row.time, timing(stage));
    row.bar.hidden = !running;
    if (running && typeof facts.progress === "number") row.bar.value = facts.progress;
    else row.bar.removeAttribute("value");
    put(row.verdict.firstChild, stage.verdict);
    row.verdict.hidden = !stage.verdict;
    if (stage.worse) put(row.see, stage.worse === 1 ? "See the row it is worse on" : `See the ${stage.worse.toLocaleString("en-US")} rows it is worse on`);
    row.see.hidden = !stage.worse;
    put(row.error, stage.error ?? "");
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
    const path = `${runPath(this.id)}/${encodeURIComponent(name)}/log`;
    this.log.open(path);
    this.log.root.hidden = false;
    put(this.log.title, `Log of ${name}`);
    this.log.download.href = address(`${path}.txt`);
    for (const [stage, row] of this.rows) {
      row.root.classList.toggle("is-shown", stage === name);
      row.button.setAttribute("aria-pressed", String(stage === name));
    }
  }

  async act(verb) {
    try {
      const reply = await ask(`${runPath(this.id)}/${verb}`, { method: "POST" });
      const facts = await reply.json();
      put(this.note, facts.error ?? "");
      if (reply.ok) this.pinned = false;
    } catch (error) {
      if (!(error instanceof Lost)) throw error;
      put(this.note, "The lab did not answer; try again.");
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

// Seconds a stage has taken, as it measured them itself.
function spentOn(stage) {
  if (stage.status === "running") return stage.elapsed;
  return stage.seconds ?? (stage.finished && stage.started ? stage.finished - stage.started : null);
}

function timing(stage) {
  const eta = stage.status === "running" ? stage.facts.eta_seconds : null;
  const parts = [stage.status === "queued" ? "" : seconds(spentOn(stage)), typeof eta === "number" ? `about ${roughly(eta)} left` : ""];
  return parts.filter(Boolean).join(" · ");
}

const percent = (fraction) => `${Math.floor(100 * fraction)}%`;

// The remaining time of a run; with "at least" if a stage's time is unknown.
function left({ eta_seconds: eta, at_least_seconds: least }) {
  if (eta !== null) return `about ${roughly(eta)} left`;
  return least > 0 ? `at least ${roughly(least)} left` : "";
}

function title(run) {
  const words = [run.status, run.name];
  const running = run.stages.find((s) => s.status === "running");
  if (running && run.progress) words.splice(0, 1, `${percent(run.progress.fraction)} ${running.name}`, left(run.progress));
  return `${words.filter(Boolean).join(" · ")} – ${HOME_TITLE}`;
}
