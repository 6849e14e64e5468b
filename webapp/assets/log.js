// The log: all lines of a long run, of which only the visible ones are in the document.

import { askJson } from "./ask.js";
import { el } from "./draw.js";
import { Lines, textOf } from "./lines.js";

const MOST_LINES = 300_000;
const LINE_PX = 19;
const BEYOND = 12; // rows kept above and below those in sight
const MOST_CHARACTERS = 4000; // of a line shown
const EARLIER_PIECES = 8;
const SLICE_MS = 8; // of searching at a time
const UP = ["ArrowUp", "PageUp", "Home"];

export class Log {
  constructor() {
    this.lines = new Lines(MOST_LINES);
    this.finder = new Finder(this.lines, () => this.told());
    this.rows = new Map();
    this.build();
    this.clear();
  }

  build() {
    this.follow = el("input", { type: "checkbox", id: "log-follow", onchange: () => this.later() });
    this.follow.checked = true;
    this.find = el("input", { type: "search", placeholder: "Find in log", "aria-label": "Find in log", spellcheck: "false",
      oninput: () => this.search(), onkeydown: (event) => this.findKey(event) });
    this.count = el("span", { class: "lab-count", role: "status" });
    this.steps = el("span", { class: "lab-steps", hidden: true },
      el("button", { type: "button", class: "lab-button", "aria-label": "Previous match", title: "Previous match (Shift+Enter)", onclick: () => this.step(-1) }, "↑"),
      el("button", { type: "button", class: "lab-button", "aria-label": "Next match", title: "Next match (Enter)", onclick: () => this.step(1) }, "↓"));
    this.download = el("a", { class: "lab-button", download: true }, "Download");
    this.title = el("h3", {}, "Log");
    this.earlier = el("button", { type: "button", class: "lab-button", onclick: () => this.loadEarlier() }, "Load earlier");
    this.before = el("span");
    this.top = el("div", { class: "lab-earlier", hidden: true }, this.earlier, this.before);
    this.space = el("div", { class: "lab-space" });
    this.view = el("div", { class: "lab-lines", role: "log", "aria-live": "off", "aria-label": "Log", tabindex: "0",
      onscroll: () => this.scrolled(), onkeydown: (event) => this.key(event) }, this.top, this.space);
    this.view.addEventListener("wheel", (event) => event.deltaY < 0 && this.letGo(), { passive: true });
    new ResizeObserver(() => this.later()).observe(this.view);
    this.root = el("section", { class: "lab-log" },
      el("div", { class: "lab-bar" }, this.title, el("div", { class: "lab-find", role: "search" }, this.find, this.count, this.steps),
        el("label", { for: "log-follow" }, this.follow, " Follow"), this.download),
      this.view);
  }

  // Show another stage's log; `path` is the route for its pieces.
  open(path) {
    this.path = path;
    this.follow.checked = true;
    this.clear();
  }

  clear() {
    this.lines.clear();
    this.finder.current = null;
    this.finder.restart();
    for (const row of this.rows.values()) row.node.remove();
    this.rows.clear();
    this.seen = 0;
    this.later();
  }

  add(text, start) {
    this.finder.changed(this.lines.add(text, start));
    // Earlier lines are kept while somebody reads them, up to a limit.
    const gone = this.lines.trim(this.follow.checked ? MOST_LINES : 2 * MOST_LINES);
    if (gone) this.moved(-gone);
    this.later();
  }

  // Lines were added or dropped above: keep the visible ones in place.
  moved(lines) {
    this.finder.trimmed();
    this.resize();
    if (!this.follow.checked) this.view.scrollTop += lines * LINE_PX;
    this.seen = this.view.scrollTop;
  }

  async loadEarlier() {
    const path = this.path;
    this.earlier.disabled = true;
    try {
      for (let pieces = 0; pieces < EARLIER_PIECES && this.lines.start > 0; pieces++) {
        const piece = await askJson(`${path}?before=${this.lines.start}`);
        if (path !== this.path || !piece) return;
        this.letGo();
        this.moved(this.lines.prepend(piece.text, piece.start));
        this.finder.restart();
        this.draw();
      }
    } catch (error) {
      console.warn("The lab did not answer; the button is there to try again", error);
    } finally {
      this.earlier.disabled = false;
    }
  }

  // -- scroll position ---------------------------------------------------------------------------------

  letGo() {
    if (this.view.scrollTop > 0) this.follow.checked = false;
  }

  // Scrolling up stops following the end; reaching the end follows it again.
  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.view;
    if (scrollTop < this.seen) this.follow.checked = false;
    else if (scrollTop > this.seen && scrollHeight - scrollTop - clientHeight < LINE_PX) this.follow.checked = true;
    this.seen = scrollTop;
    this.draw();
  }

  key(event) {
    if (UP.includes(event.key)) this.letGo();
    if (event.key === "f" && (event.ctrlKey || event.metaKey)) { // the browser's own search sees only the rows in sight
      event.preventDefault();
      this.find.select();
    }
  }

  get isSelecting() {
    const selection = getSelection();
    return !selection.isCollapsed && this.space.contains(selection.anchorNode);
  }

  // -- drawing -------------------------------------------------------------------------------------------

  later() {
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  resize() {
    this.top.hidden = this.lines.start === 0;
    this.before.textContent = `${bytes(this.lines.start)} before these lines`;
    this.space.style.height = `${this.lines.lines.length * LINE_PX}px`;
    this.space.style.minWidth = `${Math.min(this.lines.width, MOST_CHARACTERS) + 2}ch`;
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    if (!this.view.clientHeight) return; // on a tab that is not shown; becoming visible resizes it
    this.resize();
    if (this.follow.checked && !this.isSelecting) {
      this.view.scrollTop = this.view.scrollHeight;
      this.seen = this.view.scrollTop;
    }
    const above = this.view.scrollTop - this.space.offsetTop;
    const from = Math.max(Math.floor(above / LINE_PX) - BEYOND, 0);
    const to = Math.min(Math.ceil((above + this.view.clientHeight) / LINE_PX) + BEYOND, this.lines.lines.length);
    this.place(this.lines.first + from, this.lines.first + to);
  }

  // Rows that stay visible keep their node, and so their selection.
  place(from, to) {
    for (const [number, row] of this.rows) {
      if (number >= from && number < to) continue;
      row.node.remove();
      this.rows.delete(number);
    }
    let next = this.space.firstChild;
    for (let number = from; number < to; number++) {
      let row = this.rows.get(number);
      if (!row) this.rows.set(number, (row = { node: el("div", { class: "lab-line" }) }));
      this.write(row, number);
      if (row.node === next) next = next.nextSibling;
      else this.space.insertBefore(row.node, next);
    }
  }

  write(row, number) {
    const top = `${(number - this.lines.first) * LINE_PX}px`;
    if (row.node.style.top !== top) row.node.style.top = top;
    const line = this.lines.at(number);
    const pattern = this.finder.pattern;
    if (row.line !== line || row.pattern !== pattern) row.node.replaceChildren(...parts(line, pattern));
    row.node.classList.toggle("is-current", number === this.finder.current);
    Object.assign(row, { line, pattern });
  }

  // -- finding -------------------------------------------------------------------------------------------

  search() {
    this.finder.search(this.find.value, this.lines.first + Math.floor(this.view.scrollTop / LINE_PX));
    this.later();
  }

  findKey(event) {
    if (event.key !== "Enter") return;
    event.preventDefault();
    this.step(event.shiftKey ? -1 : 1);
  }

  step(by) {
    this.finder.step(by);
    this.told();
  }

  // The finder has found a match or moved to one.
  told() {
    this.count.textContent = this.finder.words;
    this.steps.hidden = !this.finder.pattern;
    const number = this.finder.wanted;
    if (number === null) return this.later();
    this.finder.wanted = null;
    this.follow.checked = false;
    this.draw();
    const top = this.space.offsetTop + (number - this.lines.first) * LINE_PX;
    const isInSight = top >= this.view.scrollTop && top + LINE_PX <= this.view.scrollTop + this.view.clientHeight;
    if (!isInSight) this.view.scrollTop = top - this.view.clientHeight / 2;
    this.seen = this.view.scrollTop;
    this.draw();
    this.reveal(this.rows.get(number)?.node.querySelector("mark"));
  }

  // Scroll to a match far to the right, without scrolling the page.
  reveal(mark) {
    if (!mark) return;
    const [a, b] = [mark.getBoundingClientRect(), this.view.getBoundingClientRect()];
    if (a.left < b.left || a.right > b.right) this.view.scrollLeft += a.left - b.left - b.width / 3;
  }
}

// Searches for a text, some lines at a time, so that typing and scrolling stay fluid.
class Finder {
  constructor(lines, tell) {
    this.lines = lines;
    this.tell = tell;
    this.pattern = this.from = this.current = this.wanted = null;
    this.restart();
  }

  search(text, from) {
    this.pattern = text ? new RegExp(text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi") : null;
    this.from = from; // the first match from here on is gone to
    this.current = null;
    this.restart();
    this.tell();
  }

  restart() {
    this.found = []; // numbers of lines that match
    this.scanned = this.lines.first;
    this.scan();
  }

  // Lines from `number` on are new or have changed.
  changed(number) {
    this.scanned = Math.min(this.scanned, number);
    while (this.found.length && this.found.at(-1) >= number) this.found.pop();
    this.scan();
  }

  trimmed() {
    const kept = this.found.findIndex((number) => number >= this.lines.first);
    this.found.splice(0, kept < 0 ? this.found.length : kept);
    this.scanned = Math.max(this.scanned, this.lines.first);
  }

  scan() {
    if (!this.pattern || this.timer) return;
    const until = performance.now() + SLICE_MS;
    while (this.scanned < this.lines.end && (this.scanned % 64 || performance.now() < until)) {
      this.pattern.lastIndex = 0;
      if (this.pattern.test(textOf(this.lines.at(this.scanned)))) this.found.push(this.scanned);
      this.scanned++;
    }
    if (this.scanned < this.lines.end) this.timer = setTimeout(() => { this.timer = null; this.scan(); });
    if (this.from !== null && (this.isDone || this.found.at(-1) >= this.from)) {
      const at = this.found.findIndex((number) => number >= this.from);
      if (this.found.length) this.go(at < 0 ? this.found.length - 1 : at);
      this.from = null;
    }
    this.tell();
  }

  get isDone() {
    return this.scanned >= this.lines.end;
  }

  step(by) {
    if (!this.found.length) return;
    const at = this.found.indexOf(this.current);
    this.go(at < 0 ? (by > 0 ? 0 : this.found.length - 1) : (at + by + this.found.length) % this.found.length);
  }

  go(index) {
    this.current = this.wanted = this.found[index];
  }

  get words() {
    if (!this.pattern) return "";
    if (!this.found.length) return this.isDone ? "No match" : "Searching…";
    const at = this.found.indexOf(this.current);
    return `${at < 0 ? "–" : (at + 1).toLocaleString("en")} of ${this.found.length.toLocaleString("en")}${this.isDone ? "" : "…"}`;
  }
}

// A line as nodes: its coloured parts, and the matches in it.
function parts(line, pattern) {
  const whole = textOf(line);
  const text = whole.slice(0, MOST_CHARACTERS);
  const runs = line.runs ?? [[0, ""]];
  if (pattern) pattern.lastIndex = 0;
  const marks = pattern ? [...text.matchAll(pattern)].map((match) => [match.index, match.index + match[0].length]) : [];
  const cuts = [...new Set([0, text.length, ...runs.map(([at]) => Math.min(at, text.length)), ...marks.flat()])].sort((a, b) => a - b);
  const made = cuts.slice(1).map((end, i) => {
    const classes = runs.findLast(([at]) => at <= cuts[i])[1];
    const isMatch = marks.some(([from, to]) => from <= cuts[i] && end <= to);
    if (!isMatch && !classes) return text.slice(cuts[i], end);
    return el(isMatch ? "mark" : "span", classes ? { class: classes } : {}, text.slice(cuts[i], end));
  });
  if (whole.length > MOST_CHARACTERS) made.push(el("em", {}, ` … ${(whole.length - MOST_CHARACTERS).toLocaleString("en")} more characters; download the log to read them`));
  return made;
}

function bytes(count) {
  return count > 1e6 ? `${(count / 1e6).toFixed(1)} MB` : `${Math.ceil(count / 1e3)} kB`;
}
