// The examples of a run: a table that is sorted, filtered and searched on the server, a page at a time.

import { askJson, address } from "./ask.js";
import { el } from "./draw.js";
import { runPath } from "./run.js";

const SORTS = { worst: "Adapter worst first", best: "Adapter best first", line: "Line of the dataset", base: "Highest loss of the base", adapter: "Highest loss with adapter" };
const MARKS = { base: "Against the expected answer", sides: "Between base and adapter", none: "Not marked" };
const SAME = 0, GONE = 1; // as `word_diff` numbers them
const ROWS = 20; // as `pages` has them
const WHOLE = 64, SHOWN = 12; // digits of a checksum, and those that are shown
const LOST = "The lab did not answer. Try again.";
const GONE_RUN = "The examples of this run cannot be read any more.";
const number = (value) => Number(value).toLocaleString("en-US");
const loss = (value) => (value === null ? "" : value.toFixed(2));
const signed = (value) => (value === null ? "" : `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(2)}`);

export const draw = {
  // Links to the report of a run and to its ZIP, with or without rows of its data.
  reports(root, value) {
    root.replaceChildren();
    if (!value) return;
    const path = runPath(value.run);
    const rows = el("input", { type: "checkbox", onchange: () => point() });
    const links = [["report.html", "Report", false], ["report.md", "Report as Markdown", true], ["model.zip", "Model and report as ZIP", true]]
      .filter(([name]) => name !== "model.zip" || value.exported)
      .map(([name, text, download]) => [name, el("a", { class: "lab-button", download, target: download ? null : "_blank", rel: download ? null : "noopener" }, text)]);
    const point = () => {
      for (const [name, link] of links) link.href = address(`${path}/${name}${rows.checked ? "?rows=true" : ""}`);
    };
    point();
    root.append(el("div", { class: "lab-rows-bar" }, ...links.map(([, link]) => link),
      el("label", {}, rows, " Include rows of the data: examples, and in the ZIP answers.json")));
  },

  examples(root, value, trigger) {
    root.replaceChildren();
    root.shown = value; // what is still on its way for another one is dropped
    if (!value) return;
    new Examples(root, value, trigger).show();
    if (value.worse) root.scrollIntoView();
  },
};

class Examples {
  constructor(root, value, trigger) {
    this.root = root;
    this.value = value;
    this.trigger = trigger;
    this.path = runPath(value.run);
    this.start = 0;
    this.turn = 0;
    this.rows = [];
    this.search = el("input", { type: "search", "aria-label": "Search the examples", placeholder: "Search the examples", maxlength: "200", onchange: () => this.begin() });
    this.sort = select("Sort", SORTS, () => this.begin());
    this.marks = select("Mark differences", MARKS, () => this.draw());
    this.worse = el("input", { type: "checkbox", checked: value.worse, onchange: () => this.begin() });
    this.back = el("button", { type: "button", class: "lab-button", disabled: true, onclick: () => this.move(-1) }, "Previous");
    this.on = el("button", { type: "button", class: "lab-button", disabled: true, onclick: () => this.move(1) }, "Next");
    this.note = el("p", { class: "lab-note", role: "status" });
    this.proof = el("div");
    this.body = el("tbody");
    const link = (kind) => el("a", { class: "lab-button", href: address(`${this.path}/examples.${kind}`), download: "", "aria-label": `Examples as ${kind}` }, kind.toUpperCase());
    this.more = {};
    this.heads = el("tr");
    root.append(
      el("h2", {}, "Examples"),
      el("div", { class: "lab-rows-bar" }, this.search, this.sort, this.marks, el("label", {}, this.worse, " Adapter worse"), this.back, this.on, link("csv"), link("jsonl")),
      this.note,
      this.proof,
      el("div", { class: "lab-scroll", tabindex: "0", role: "region", "aria-label": "Examples" }, el("table", {}, el("thead", {}, this.heads), this.body)));
  }

  begin() {
    this.start = 0;
    return this.show();
  }

  move(by) {
    this.start = Math.max(0, this.start + by * ROWS);
    return this.show();
  }

  async show() {
    const mine = ++this.turn;
    this.back.disabled = this.on.disabled = true;
    const given = new URLSearchParams({ sort: this.sort.value, worse: this.worse.checked, search: this.search.value, start: this.start });
    let found;
    try {
      found = await askJson(`${this.path}/examples.json?${given}`);
    } catch (error) {
      if (mine === this.turn) this.note.textContent = LOST;
      return;
    }
    if (mine !== this.turn || this.root.shown !== this.value) return;
    if (!found?.rows) {
      this.note.textContent = GONE_RUN;
      return;
    }
    this.rows = found.rows;
    this.more = found.more;
    const end = found.start + found.rows.length;
    this.note.textContent = found.total
      ? `${number(found.start + 1)} to ${number(end)} of ${number(found.total)}${found.rest ? "; more were measured and are not listed" : ""}${found.hidden ? `; answers of ${number(found.hidden)} more adapters are in the CSV` : ""}. Difference: loss with adapter − loss of the base, in nats a token; above 0 the adapter is worse.`
      : "No matching examples.";
    this.back.disabled = !this.start;
    this.on.disabled = end >= found.total || !found.rows.length;
    this.proof.replaceChildren(...proofOf(found));
    this.draw();
  }

  draw() {
    const names = ["Line", "Prompt", "Expected", "Base", "With adapter", ...Object.values(this.more), "Difference"];
    this.heads.replaceChildren(...names.map((name) => el("th", { scope: "col" }, name)));
    this.body.replaceChildren(...this.rows.map((row) => this.row(row)));
  }

  row(row) {
    const how = this.marks.value;
    const side = (name) => {
      const answer = name in this.more ? row.more[name] : row[name];
      if (!answer) return [el("span", { class: "lab-soft" }, "no answer")];
      const words = how === "base" ? row.words[name] : how === "sides" && name === "adapter" ? row.words.sides : null;
      const isLong = how !== "none" && !words && (how === "base" || name === "adapter");
      return [...marked(words, answer.text), answer.cut ? el("em", {}, " [cut at the limit]") : null, isLong ? el("em", {}, " [too long to mark]") : null];
    };
    const named = (at, name, ...content) => el("td", { "data-name": name, class: at }, ...content);
    const losses = [row.difference === null ? "" : `${loss(row.base_loss)} → ${loss(row.adapter_loss)}`, row.float_loss === null ? "" : `float model ${loss(row.float_loss)}`];
    const where = row.line === null ? "an answer" : `line ${number(row.line)}`;
    const whole = row.short ? el("button", { type: "button", class: "lab-button", "aria-label": `Show all of ${where}`, onclick: (event) => this.whole(row, event.target) }, "Show all") : null;
    const open = el("button", { type: "button", class: "lab-button", "aria-label": `Open in Compare: ${where}`, onclick: () => this.trigger("select", { id: String(row.number) }) }, "Open in Compare");
    const system = row.system ? el("div", { class: "lab-soft" }, `System: ${row.system}`) : null;
    return el("tr", { "data-number": row.number },
      named("is-short", "Line", row.line === null ? "" : number(row.line)),
      named(null, "Prompt", system, row.prompt, el("div", { class: "lab-bar" }, whole, open)),
      named(null, "Expected", row.expected),
      named(null, "Base", ...side("base")),
      named(null, "With adapter", ...side("adapter")),
      ...Object.entries(this.more).map(([name, words]) => named(null, words, ...side(name))),
      named(row.difference > 0 ? "is-short is-worse" : "is-short", "Difference", el("div", {}, signed(row.difference)), ...losses.filter(Boolean).map((text) => el("div", { class: "lab-soft" }, text))));
  }

  // An example whose texts were shortened, with all of them.
  async whole(row, button) {
    button.disabled = true;
    try {
      const found = await askJson(`${this.path}/examples/${row.number}.json`);
      const at = this.rows.indexOf(row);
      if (!found || at < 0) throw new Error("gone");
      this.rows[at] = { ...found, short: false };
      const drawn = this.row(this.rows[at]);
      this.body.children[at].replaceWith(drawn);
      drawn.querySelector("button")?.focus();
    } catch (error) {
      button.disabled = false;
      this.note.textContent = LOST;
    }
  }
}

// The files that answered, by the beginnings of their checksums, and what is no longer the same.
function proofOf({ files, changed }) {
  const named = (of) => of.flatMap(([name, digest]) => [", ", `${name} `, el("span", { title: digest.length === WHOLE ? `SHA-256 ${digest}` : null }, digest.length === WHOLE ? digest.slice(0, SHOWN) : digest)]).slice(1);
  const sides = files.flatMap(({ side, files: of }) => ["; ", `${side}: `, ...named(of)]).slice(1);
  return [files.length ? el("p", { class: "lab-note" }, "Answered by: ", ...sides, ".") : null,
    ...changed.map((text) => (files.length ? el("p", { class: "lab-wrong", role: "alert" }, text) : el("p", { class: "lab-note" }, text)))].filter(Boolean);
}

function select(label, options, change) {
  return el("select", { "aria-label": label, onchange: change }, ...Object.entries(options).map(([value, name]) => el("option", { value }, name)));
}

// A text with its differences to another: pieces that are only there are <del>, those that are only here <ins>.
export function marked(words, text) {
  if (!words) return [text];
  return words.map(([kind, piece]) => (kind === SAME ? piece : el(kind === GONE ? "del" : "ins", {}, piece)));
}
