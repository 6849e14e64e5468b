// Small views of plain data. Text is always inserted as text: nothing from a log, a dataset or a model is ever
// parsed as HTML.

import { ask, askJson } from "./ask.js";

const GONE = "This no longer exists in this home. Reload the page to update it.";

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Change a text only if it differs, so that selections, screen readers and animations are not disturbed.
export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const SHORT = 24;
const ELSEWHERE = ["https://ml.azure.com/", "https://huggingface.co/"];
let asked = null; // when the question was put that was shown last
const WORDS = {
  queued: "Waiting", running: "Running", done: "Done", failed: "Failed",
  canceled: "Canceled", interrupted: "Interrupted",
};

export function statusBadge(status, word = WORDS[status] ?? status) {
  return el("span", { class: `lab-status is-${status}` }, el("span", { class: "lab-icon", "aria-hidden": "true" }), word);
}

export function seconds(value) {
  if (value === null || value === undefined || !isFinite(value)) return "";
  if (value < 10) return `${Math.max(value, 0).toFixed(1)} s`;
  const whole = Math.round(value);
  const two = (n) => String(n).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}

// An estimated time: `45 s`, `2 min`, `1 h 20 min`.
export function roughly(value) {
  if (value < 57.5) return `${Math.max(5, 5 * Math.round(value / 5))} s`;
  const minutes = Math.max(1, Math.round(value / 60));
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function cell(content, tag = "td", attributes = {}) {
  const isStatus = content !== null && typeof content === "object";
  // Short words stay in one piece; long text may be broken anywhere.
  const short = isStatus || String(content ?? "").length <= SHORT;
  return el(tag, { class: short ? "is-short" : null, ...attributes }, isStatus ? statusBadge(content.status, content.word ?? undefined) : String(content ?? ""));
}

function rowOf(value, index, select) {
  const id = value.ids?.[index];
  const row = el("tr", id ? { "data-id": id, class: "lab-pick" } : {}, ...value.rows[index].map((c) => cell(c)));
  if (!id) return row;
  for (const one of row.children) one.title = one.textContent; // there may be no room for all of it
  const name = row.children[1];
  const button = el("button", { type: "button", class: "lab-link" }, ...name.childNodes);
  name.append(button);
  row.addEventListener("click", () => select(row, id));
  if (id === value.picked) row.classList.add("is-picked");
  return row;
}

// A box at the head of each row. Boxes stay checked when a search hides their rows. A table that was requested
// before the last click, as `ticks` shows, does not know about that click yet.
function checks(root, value, trigger) {
  const table = root.querySelector("table");
  const isNewer = value.ticks === undefined || value.ticks >= (root.ticks ?? 0);
  if (isNewer) root.checked = new Set(value.checked);
  const { checked } = root;
  table.tHead.rows[0].prepend(cell(value.check, "th", { scope: "col" }));
  for (const row of table.tBodies[0].rows) {
    const id = row.dataset.id;
    const box = el("input", { type: "checkbox", "aria-label": `${value.check} ${row.children[1].textContent} ${id}`,
      onchange: () => {
        box.checked ? checked.add(id) : checked.delete(id);
        root.ticks = (root.ticks ?? value.ticks ?? 0) + 1;
        trigger("check", { ids: [...checked], ticks: root.ticks });
      } });
    box.checked = checked.has(id);
    row.prepend(el("td", { class: "lab-check", onclick: (event) => event.stopPropagation() }, box));
  }
}

// Progress of a transfer: `3.2 of 12.0 MB, about 2 min left`.
function transferred({ bytes_done: done, bytes_total: total, eta_seconds: eta }) {
  if (!total) return "";
  const rest = done < total && isFinite(eta) ? `, about ${roughly(eta)} left` : "";
  return `${(done / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB${rest}`;
}

export const draw = {
  notice(root, value, trigger) {
    root.replaceChildren();
    root.className = "lab-notice";
    if (!value) return;
    root.classList.add("is-shown", `is-${value.kind ?? "info"}`);
    root.setAttribute("role", "status");
    root.append(el("p", {}, value.text));
    if (value.action) {
      root.firstElementChild.append(" ", el("button", { type: "button", class: "lab-button", onclick: () => trigger("select", { id: value.id }) }, value.action));
    }
    if (value.note) root.append(el("p", { class: "lab-note" }, value.note));
  },

  problems(root, value) {
    root.replaceChildren();
    root.classList.toggle("is-shown", Boolean(value));
    if (!value) return;
    root.setAttribute("role", "alert");
    root.append(el("p", {}, value.title), el("ul", {}, ...value.items.map((item) => el("li", {}, item))));
  },

  // Why a button beside it is off.
  why(root, value) {
    root.textContent = value ?? "";
  },

  // A question to answer first; without `yes` it is only information.
  question(root, value, trigger) {
    root.replaceChildren();
    if (!value || value.at === asked) return; // a part of the page that comes back asks nothing again
    asked = value.at;
    const answer = (yes) => { dialog.close(); if (yes) trigger("select", { id: value.id }); };
    const button = (word, kind, yes) => el("button", { type: "button", class: `lab-button ${kind}`, onclick: () => answer(yes) }, word);
    const dialog = el("dialog", { class: "lab-dialog", "aria-label": value.text },
      el("p", {}, value.text), ...value.notes.map((note) => el("p", { class: "lab-note" }, note)),
      el("div", { class: "lab-bar" }, value.yes ? button(value.yes, "is-danger", true) : null, button(value.yes ? "Keep" : "Close", "", false)));
    root.append(dialog);
    dialog.showModal();
  },

  facts(root, value) {
    root.replaceChildren();
    if (!value) return;
    root.append(el("dl", {}, ...value.map(([name, text, title]) => el("div", {}, el("dt", {}, name), el("dd", { title }, text)))));
  },

  // The first row as the model reads it: its input, then what it learns.
  example(root, value) {
    root.replaceChildren();
    if (!value) return;
    root.append(
      el("h2", {}, "The first row as the model reads it"),
      el("pre", { tabindex: "0", "aria-label": "Rendered example" },
        ...(value.turns ?? [value.prompt]).map((text, at) => el(at % 2 ? "mark" : "span", { title: at % 2 ? "Learned" : "Given" }, text)),
        el("mark", { title: "Learned" }, value.response)),
      el("p", { class: "lab-note" }, "The model learns to write the marked part; the rest is its input."));
  },

  table(root, value, trigger) {
    if (root.matches(":active")) { // a row that is replaced under the pointer would lose its click
      addEventListener("pointerup", () => setTimeout(() => draw.table(root, value, trigger)), { once: true });
      return;
    }
    const top = root.firstElementChild?.scrollTop ?? 0;
    root.replaceChildren();
    if (!value) return;
    if (!value.rows.length) {
      if (value.empty) root.append(el("p", { class: "lab-empty" }, value.empty));
      return;
    }
    const select = (row, id) => {
      for (const other of root.querySelectorAll("tr.lab-pick")) other.classList.toggle("is-picked", other === row);
      trigger("select", { id });
    };
    root.append(
      el("div", { class: "lab-scroll", tabindex: "0", role: "region", "aria-label": value.caption || "Table" },
        el("table", {},
          value.caption ? el("caption", {}, value.caption) : null,
          el("thead", {}, el("tr", {}, ...value.columns.map((name) => cell(name, "th", { scope: "col" })))),
          el("tbody", {}, ...value.rows.map((_, index) => rowOf(value, index, select))))),
    );
    root.firstElementChild.scrollTop = top;
    if (value.check) checks(root, value, trigger);
  },

  // A scorecard: its table and a chart, polled until everything is measured.
  scorecard(root, value) {
    clearTimeout(root.timer);
    root.replaceChildren();
    root.shown = value; // what is still on its way for another one is dropped
    if (!value) return;
    const place = el("div"), plot = el("div", { class: "lab-plot", role: "img", "aria-label": "Perplexity by size" });
    root.append(place, plot);
    let before = "";
    const follow = async () => {
      let ended = false;
      try {
        const found = await askJson(`scorecards/${encodeURIComponent(value.group)}.json`);
        if (root.shown !== value) return;
        if (!found) return root.replaceChildren(el("p", { class: "lab-note" }, GONE));
        if (JSON.stringify(found) !== before) {
          draw.table(place, found.table, () => {});
          const { scatter } = await import("./charts.js");
          await scatter(plot, found.points);
          before = JSON.stringify(found);
        }
        ended = found.ended;
      } catch (error) {
        console.warn("The lab did not answer, trying again", error);
      }
      if (!ended && root.shown === value) root.timer = setTimeout(follow, document.hidden ? 5000 : 1000);
    };
    follow();
  },

  // A link, allowed only to places where models are published; it is followed only on a click.
  link(root, value) {
    root.replaceChildren();
    if (!ELSEWHERE.some((place) => value?.href?.startsWith(place))) return;
    root.append(el("a", { class: "lab-button", href: value.href, target: "_blank", rel: "noopener noreferrer" }, value.text));
  },

  // One stage of a run, or a pull, until it has ended; then Gradio gets an event.
  stage(root, value, trigger) {
    clearTimeout(root.timer);
    root.replaceChildren();
    root.shown = value; // what is still on its way for another one is dropped
    if (!value) return;
    const path = value.pulled ? `pulled/${encodeURIComponent(value.pulled)}` : `runs/${value.run}`;
    const state = el("span"), said = el("span"), left = el("span", { class: "lab-time" });
    const bar = el("progress", { max: "100", value: "0", "aria-label": value.pulled ? "Pulling" : "Publishing" });
    const cancel = el("button", { type: "button", class: "lab-button", onclick: async () => {
      cancel.disabled = true;
      put(cancel, "Canceling…");
      const reply = await ask(`${path}/cancel`, { method: "POST" }).catch((error) => {
        console.warn("The lab did not answer", error);
      });
      if (reply?.ok) return;
      cancel.disabled = false;
      put(cancel, "Cancel");
    } }, "Cancel");
    const show = (stage) => {
      if (state.dataset.status !== stage.status) state.replaceChildren(statusBadge(stage.status));
      state.dataset.status = stage.status;
      put(said, stage.error ?? stage.facts.message ?? "");
      put(left, transferred(stage.facts));
      bar.value = Math.round(100 * (stage.status === "done" ? 1 : stage.facts.progress ?? 0));
      if (!root.firstChild) root.append(el("div", { class: "lab-bar" }, state, said, left, cancel), bar);
    };
    const follow = async () => {
      let stage = null;
      try {
        const known = await askJson(`${path}.json`);
        if (root.shown === value && !known) return root.replaceChildren(el("p", { class: "lab-note" }, GONE));
        stage = value.pulled ? known : known?.stages?.find((s) => s.name === value.stage);
      } catch (error) {
        console.warn("The lab did not answer, trying again", error);
      }
      if (root.shown !== value) return;
      if (stage) {
        show(stage);
        if (!["queued", "running"].includes(stage.status)) {
          cancel.remove();
          if (stage.status !== "done" && value.again) root.append(el("p", { class: "lab-note" }, value.again));
          if (stage.status !== value.status) trigger("select", { status: stage.status });
          return;
        }
      }
      root.timer = setTimeout(follow, document.hidden ? 5000 : 500);
    };
    follow();
  },
};
