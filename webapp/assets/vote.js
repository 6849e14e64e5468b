// The blind vote: two answers, four choices, by key, mouse or touch. Which answer is whose is not known here
// before the voter has asked for it, which ends their vote.

import { Lost, address, ask, askJson } from "./ask.js";
import { draw as plain, el, put } from "./draw.js";
import { signed } from "./queue.js";

const SURE = 40; // rows from which on the exact tests have less to say
const LOST = "The lab did not answer, so this vote may not be kept. Try again.";
const NO_NAME = "Write your name at the top of the page: votes are kept by name, so that you can resume anywhere.";
const CLOSE = "Reveal which answer was whose? Your vote on this run is closed then; rows without a vote stay without.";
const CHOICES = [["a", "A is better", "1", "A"], ["b", "B is better", "2", "B"], ["tie", "Tie", "3", "T"], ["bad", "Both bad", "4", "N"]];
const KEYS = Object.fromEntries(CHOICES.flatMap(([choice, , ...keys]) => keys.map((key) => [key.toLowerCase(), choice])));
const TYPES = "input, textarea, select, [contenteditable]:not([contenteditable=false]), [role=textbox], [role=combobox], dialog";
const WORDS = { adapter: "With adapter", base: "Base", tie: "Tie", bad: "Both bad" };
const POLL_MS = 1000;
const HIDDEN_MS = 5000;
const percent = (share) => `${Math.round(100 * share)} %`;

class Booth {
  constructor(root) {
    this.root = root;
    this.turn = 0;
    this.title = el("h2", { tabindex: "-1" });
    this.bar = el("progress", { "aria-label": "Rows with your vote" });
    this.note = el("p", { class: "lab-note", role: "status" });
    this.few = el("p", { class: "lab-note" });
    this.prompt = el("pre", { tabindex: "0", role: "region", "aria-label": "Prompt" });
    this.system = folded("System text");
    this.expected = folded("Show the expected answer");
    this.a = answer("A");
    this.b = answer("B");
    this.buttons = new Map(CHOICES.map(([choice, text, ...keys]) => [choice, el("button", {
      type: "button", class: "lab-button", id: `vote-${choice}`, "aria-keyshortcuts": keys.join(" "), onclick: () => this.vote(choice),
    }, text, ...keys.map((key) => el("kbd", { "aria-hidden": "true" }, key)))]));
    this.undo = el("button", { type: "button", class: "lab-button", id: "vote-undo", "aria-keyshortcuts": "U", onclick: () => this.back() },
      "Undo", el("kbd", { "aria-hidden": "true" }, "U"));
    this.reveal = el("button", { type: "button", class: "lab-button", id: "vote-reveal", onclick: () => this.close() }, "Reveal…");
    this.row = el("div", { class: "lab-row" }, el("section", {}, el("h3", {}, "Prompt"), this.prompt), this.system.root, this.expected.root,
      el("div", { class: "lab-pair" }, this.a.root, this.b.root),
      el("div", { class: "lab-choices", role: "group", "aria-label": "Which answer is better?" }, ...this.buttons.values()));
    this.result = el("div", { class: "lab-result" });
    this.judge = new Judge(() => this.state?.revealed && this.outcome());
    this.booth = el("div", { class: "lab-booth" }, this.title, this.bar, this.note, this.few, this.row, el("div", { class: "lab-bar" }, this.undo, this.reveal), this.result, this.judge.root);
    document.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("change", (event) => event.target.id === "you" && this.run && this.load());
  }

  open(run) {
    this.run = run;
    this.state = null;
    this.root.replaceChildren(...(run ? [this.booth] : []));
    keepInAddress(run);
    this.judge.open(run);
    if (run) this.load();
  }

  get voter() {
    return signed("")[0];
  }

  // A reply to a question that another one has followed is dropped.
  async ask(path, options) {
    const turn = ++this.turn;
    this.busy = true;
    this.lock();
    let found;
    try {
      const reply = await ask(`votes/${encodeURIComponent(this.run)}${path}`, options);
      found = await reply.json();
    } catch (error) {
      if (!(error instanceof Lost || error instanceof SyntaxError)) throw error;
      found = { error: LOST };
    } finally {
      if (turn === this.turn) this.busy = false;
    }
    if (turn !== this.turn) return null;
    const refused = found.error ?? (found.detail && "This request does not fit the page; reload the page and try again.");
    put(this.note, refused ?? "");
    this.lock();
    return refused ? null : found;
  }

  post(path, body) {
    return this.ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ voter: this.voter, ...body }) });
  }

  // With the result, if it was told just now.
  async load(row, result) {
    if (!this.voter.trim()) return this.nameless();
    const given = new URLSearchParams({ voter: this.voter, ...(row === undefined ? {} : { row }) });
    const state = await this.ask(`.json?${given}`);
    if (state) this.show(state, result);
    else if (!this.state) this.blank();
  }

  // Nothing of a row is shown: there is no name, or the row could not be read.
  blank(note) {
    this.state = null;
    if (note) put(this.note, note);
    put(this.title, "Blind vote");
    for (const part of [this.bar, this.few, this.row, this.undo, this.reveal, this.result]) part.hidden = true;
  }

  nameless() {
    ++this.turn;
    this.blank();
    this.note.replaceChildren(NO_NAME, " ", el("button", { type: "button", class: "lab-button", id: "vote-name", onclick: () => document.getElementById("you").focus() }, "Write your name"));
  }

  show(state, result) {
    const { row, rows, voted, revealed } = state;
    this.state = state;
    put(this.title, row ? `Row ${row.position} of ${rows}` : revealed ? "Result" : `All ${rows} rows have your vote`);
    [this.bar.max, this.bar.value] = [rows, voted];
    put(this.few, few(state));
    for (const part of [this.bar, this.few]) part.hidden = false;
    this.row.hidden = !row;
    this.undo.hidden = this.reveal.hidden = revealed;
    this.result.hidden = !revealed;
    put(this.reveal, row ? "Reveal…" : "Reveal the result");
    this.reveal.classList.toggle("is-primary", !row);
    if (row) this.face(row);
    this.lock();
    if (revealed) this.outcome(result);
  }

  face(row) {
    put(this.prompt, row.prompt);
    this.system.put(row.system);
    this.expected.put(row.expected);
    for (const [part, text] of [[this.a, row.a], [this.b, row.b]]) part.put(text);
    for (const [choice, button] of this.buttons) button.classList.toggle("is-primary", row.choice === choice);
    for (const part of [this.prompt, this.a.text, this.b.text]) part.scrollTop = 0;
  }

  lock() {
    const { row, last, revealed } = this.state ?? {};
    for (const button of this.buttons.values()) button.setAttribute("aria-disabled", String(Boolean(this.busy || !row)));
    this.undo.disabled = this.busy || last === null || last === undefined || revealed;
    this.reveal.disabled = this.busy;
  }

  async vote(choice) {
    const row = this.state?.row;
    if (!row || this.busy) return;
    const state = await this.post("", { row: row.row, choice, seen: row.seen });
    if (!state) return;
    put(this.note, `Voted: ${CHOICES.find(([name]) => name === choice)[1]}.`);
    this.show(state);
    this.title.scrollIntoView({ block: "nearest" });
    if (!state.row) this.title.focus();
  }

  back() {
    if (!this.undo.disabled && !this.undo.hidden) this.load(this.state.last);
  }

  async close() {
    if (this.busy || (this.state?.row && !confirm(CLOSE))) return;
    const result = await this.post("/reveal");
    if (!result) return;
    await this.load(undefined, result);
    this.title.focus();
  }

  async outcome(told) {
    const found = told ?? await this.ask(`/result.json?${new URLSearchParams({ voter: this.voter })}`);
    if (found) this.result.replaceChildren(...outcome(found, this.run, this.voter));
  }

  // Keys vote only where nobody types, and only while the vote is seen.
  key(event) {
    const { key, target, repeat } = event;
    if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || event.isComposing || repeat) return;
    if (!this.state || !this.booth.offsetParent || target.closest?.(TYPES) || document.querySelector("dialog[open]")) return;
    const choice = KEYS[key.toLowerCase()];
    if (choice && this.state.row) this.vote(choice);
    else if (key.toLowerCase() === "u") this.back();
    else return;
    event.preventDefault();
  }
}

// The model that the operator has named as judge, if any: asked by a button, followed until it has ended.
class Judge {
  constructor(onEnd) {
    this.onEnd = onEnd;
    this.go = el("button", { type: "button", class: "lab-button", id: "vote-judge", onclick: () => this.act() });
    this.bar = el("progress", { "aria-label": "Rows judged" });
    this.note = el("p", { class: "lab-note", role: "status" });
    this.root = el("div", { class: "lab-judge", hidden: true }, this.note, this.bar, el("div", { class: "lab-bar" }, this.go));
  }

  open(run) {
    clearTimeout(this.timer);
    this.run = run;
    this.root.hidden = true;
    this.running = false;
    if (run) this.poll();
  }

  async poll() {
    clearTimeout(this.timer);
    const { run } = this;
    try {
      const found = await askJson(`${this.path}.json`);
      if (run === this.run) this.show(found);
    } catch (error) {
      if (!(error instanceof Lost)) throw error;
    }
    if (run === this.run && this.running) this.timer = setTimeout(() => this.poll(), document.hidden ? HIDDEN_MS : POLL_MS);
  }

  get path() {
    return `votes/${encodeURIComponent(this.run)}/judge`;
  }

  show(found) {
    this.root.hidden = !found?.model;
    if (!found?.model) return;
    const { status, done, rows, left_out: left, error, model } = found.facts ?? {};
    const was = this.running;
    this.running = status === "running";
    [this.bar.max, this.bar.value, this.bar.hidden] = [rows || 1, done ?? 0, !this.running];
    const name = `judge:${model ?? found.model}`;
    const far = rows ? ` ${done} of ${rows} rows${left ? `, ${left} could not be judged` : ""}.` : "";
    put(this.note, status ? `${name}:${far}${error ? ` ${error}` : ""}` : `${name} has not been asked.`);
    put(this.go, this.running ? "Stop the judge" : `Ask the judge (${found.model})`);
    if (was && !this.running) this.onEnd();
  }

  async act() {
    this.go.disabled = true;
    try {
      const reply = await ask(`${this.path}${this.running ? "/stop" : ""}`, { method: "POST" });
      const found = await reply.json();
      if (found.error) put(this.note, found.error);
      else {
        this.show(found);
        this.poll();
      }
    } catch (error) {
      if (!(error instanceof Lost)) throw error;
      put(this.note, "The lab did not answer. Try again.");
    } finally {
      this.go.disabled = false;
    }
  }
}

function folded(title) {
  const text = el("pre", { tabindex: "0", role: "region", "aria-label": title });
  const root = el("details", {}, el("summary", {}, title), text);
  return { root, put: (given) => { put(text, given); root.hidden = !given; root.open = false; } };
}

function answer(name) {
  const text = el("pre", { tabindex: "0", role: "region", "aria-label": `Answer ${name}` });
  return { root: el("section", {}, el("h3", {}, name), text), text, put: (given) => put(text, given || "(empty)") };
}

function few({ rows, equal_answers: equal }) {
  const said = [];
  if (equal) said.push(`${equal} more ${equal === 1 ? "row has" : "rows have"} equal answers and ${equal === 1 ? "is" : "are"} not asked.`);
  if (rows < SURE) said.push(`A verdict needs 10 rows or more, and ${SURE} say much more; to record more answers, use the run's recipe again with a larger evaluate.prompts.`);
  return said.join(" ");
}

function outcome(found, run, voter) {
  const parts = [el("p", { class: "lab-told" }, found.text)];
  const { share, alpha, rows, voters } = found.agreement;
  if (share !== null) {
    const measured = alpha === null ? "" : ` Krippendorff's alpha is ${alpha.toFixed(2)}: 1 is agreement, 0 is chance.`;
    parts.push(el("p", { id: "vote-agreement" }, `${voters} voters: ${percent(share)} of their votes on ${rows} shared rows are equal.${measured}`));
  }
  for (const judge of found.judges) {
    const { rows: shared, share: equal } = judge.with_people;
    parts.push(el("p", {}, `${judge.voter}: ${judge.text}${shared ? ` It agrees with people in ${percent(equal)} of ${shared} rows.` : ""}`));
  }
  if (found.more_voters) parts.push(el("p", { class: "lab-note" }, `${found.more_voters} later voters don't count.`));
  if (found.left_out) parts.push(el("p", { class: "lab-note" }, `${found.left_out} votes are on answers that have changed since, and don't count.`));
  const link = address(`votes/${encodeURIComponent(run)}/pairs.jsonl?${new URLSearchParams({ voter })}`);
  parts.push(el("div", { class: "lab-bar" }, el("a", { class: "lab-button", id: "vote-pairs", href: link, download: "" }, "Download preference pairs"),
    el("span", { class: "lab-note" }, `${found.adapter + found.base} pairs; rows without a preference are left out: ${found.neither}.`)));
  const [counts, sides] = [el("div", { class: "lab-table" }), el("div", { class: "lab-table" })];
  plain.table(counts, { columns: ["Voter", "Rows", "Adapter", "Base", "Tie", "Both bad"], caption: "Votes",
    rows: found.voters.map((one) => [one.voter, one.rows, one.adapter, one.base, one.tie, one.bad]) });
  plain.table(sides, { columns: ["Row", "Prompt", "A was", "B was", "Your vote"], caption: "What the sides were",
    rows: found.sides.map((one) => [one.row + 1, one.prompt, WORDS[one.a], WORDS[one.b], WORDS[one.choice]]) });
  return [...parts, counts, sides];
}

// The address names the run, so that a reload comes back to it.
function keepInAddress(run) {
  const url = new URL(location.href);
  if (run) url.searchParams.set("vote", run);
  else url.searchParams.delete("vote");
  history.replaceState(history.state, "", url);
}

export const draw = {
  vote(root, value) {
    if (!value && !root.booth) return;
    root.booth ??= new Booth(root);
    root.booth.open(value?.run ?? null);
  },
};
