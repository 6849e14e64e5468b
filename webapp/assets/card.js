// The data card: figures, a histogram of tokens, findings with their lines, and the rows a page at a time.

import { askJson, address } from "./ask.js";
import { loadPlotly } from "./charts.js";
import { draw as views, el } from "./draw.js";

const number = (value) => Number(value).toLocaleString("en-US");
const MOST_EMPTY = 4;
// The card counts these and never shows them; whoever looks for them finds them by their lines here.
const AS_THEY_ARE = "Rows are shown as they are in the file, also secrets and personal data.";
const GONE = "This dataset or its card has changed. Check it again.";

export const draw = {
  card(root, value) {
    root.replaceChildren();
    root.shown = value; // what is still on its way for another one is dropped
    if (!value) return;
    if (value.text) return root.append(el("p", { class: "lab-note", role: "status" }, value.text));
    root.append(el("h3", {}, "Data card"), el("p", {}, summary(value)));
    if (value.tokens) histogram(root, value.tokens);
    for (const note of value.notes) root.append(el("p", { class: "lab-note" }, note));
    root.append(value.findings.length ? findings(value) : el("p", {}, "No findings: no copies, leaks, secrets or personal data."));
  },

  rows(root, value) {
    root.replaceChildren();
    root.shown = value;
    if (value) rows(root, value);
  },
};

const many = (count) => `${number(count)} row${count === 1 ? "" : "s"}`;

function summary({ rows, tokens }) {
  if (!tokens) return `${many(rows)}. Tokens are not counted.`;
  const { median, p95, max, cut, max_length: most, trained } = tokens;
  return `${many(rows)}. Tokens a row: median ${number(median)}, 95 % have ${number(p95)} or fewer, longest ${number(max)}. ` +
    `${many(cut)} of more than ${number(most)} tokens will be cut. ${Math.round(100 * trained)} % of the tokens are trained on.`;
}

async function histogram(root, { width, bars, max_length: most }) {
  const plot = el("div", { class: "lab-plot", id: "card-tokens", role: "img", "aria-label": "Rows by their number of tokens" });
  root.append(plot);
  const Plotly = await loadPlotly();
  if (!plot.isConnected) return;
  const colour = (name) => getComputedStyle(plot).getPropertyValue(name).trim();
  const end = bars.length * width;
  const isNear = most <= MOST_EMPTY * end; // else all bars would be at the left edge
  const shapes = isNear ? [{ type: "line", x0: most, x1: most, yref: "paper", y0: 0, y1: 1, line: { color: colour("--lab-bad"), dash: "dot" } }] : [];
  const trace = { type: "bar", x: bars.map((_, i) => (i + 0.5) * width), y: bars, width: bars.map(() => width),
    marker: { color: colour("--lab-accent") }, hovertemplate: "%{y:,} rows<extra></extra>" };
  await Plotly.react(plot, [trace], {
    height: 220, margin: { l: 50, r: 15, t: 10, b: 40 }, bargap: 0.05, showlegend: false, shapes,
    paper_bgcolor: "transparent", plot_bgcolor: "transparent", font: { color: colour("--lab-text") || undefined },
    xaxis: { title: { text: isNear ? "Tokens (dotted: where rows are cut)" : `Tokens (rows are cut at ${number(most)}, far to the right)` }, range: [0, isNear ? Math.max(end, 1.05 * most) : end], fixedrange: true }, yaxis: { title: { text: "Rows" }, fixedrange: true },
  }, { displayModeBar: false, responsive: true });
}

function findings({ key, findings: found }) {
  const head = ["Finding", "Rows", "Lines", "All lines"].map((name) => el("th", { scope: "col" }, name));
  const body = found.map(({ name, title, about, rows, first }) => {
    const link = (kind) => el("a", { href: address(`cards/${key}/${name}.${kind}`), download: "", "aria-label": `${title}, lines as ${kind}` }, kind.toUpperCase());
    const lines = first.map(number).join(", ") + (rows > first.length ? ", …" : "");
    return el("tr", { "data-finding": name }, el("td", { title: about }, title), el("td", {}, number(rows)), el("td", {}, lines), el("td", {}, link("csv"), " ", link("json")));
  });
  return el("div", { class: "lab-scroll", tabindex: "0", role: "region", "aria-label": "Findings" },
    el("table", {}, el("caption", {}, "Findings"), el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body)));
}

// All rows, a page at a time. `places` are where the pages before this one begin.
function rows(root, value) {
  const search = el("input", { type: "search", "aria-label": "Search the rows", placeholder: "Search the rows", maxlength: "200" });
  const line = el("input", { type: "number", min: "1", "aria-label": "Go to line", placeholder: "Line" });
  const back = el("button", { type: "button", class: "lab-button", disabled: true }, "Previous");
  const on = el("button", { type: "button", class: "lab-button", disabled: true }, "Next");
  const table = el("div", { class: "lab-table" }), note = el("p", { class: "lab-note", role: "status" });
  root.append(el("p", { class: "lab-note" }, AS_THEY_ARE), el("div", { class: "lab-rows-bar" }, search, line, back, on), note, table);
  const first = { offset: 0, at: 1 };
  let places = [first], next = null, turn = 0;

  const show = async () => {
    const mine = ++turn;
    let place = places.at(-1);
    let found = [];
    next = null;
    back.disabled = on.disabled = true;
    try {
      while (place) { // a search may have far to go: each answer is of a piece of the file
        const given = new URLSearchParams({ ...place, search: search.value, line: line.value || "1" });
        const answer = await askJson(`cards/${value.key}/rows?${given}`);
        if (mine !== turn || root.shown !== value) return;
        if (!answer?.rows) return void (note.textContent = GONE);
        [found, place] = [answer.rows, answer.next];
        if (found.length) break;
        if (place) note.textContent = `Searched up to line ${number(place.at)}…`;
      }
    } catch (error) {
      if (mine === turn) note.textContent = "The lab did not answer. Try again.";
      return;
    }
    next = place;
    note.textContent = found.length ? "" : "No matching rows.";
    back.disabled = places.length < 2;
    on.disabled = !next;
    const names = [...new Set(found.flatMap(({ cells }) => Object.keys(cells)))];
    views.table(table, { columns: ["Line", ...names], rows: found.map(({ line: at, cells }) => [number(at), ...names.map((name) => cells[name] ?? "")]), caption: "Rows" }, () => {});
  };
  const begin = () => { places = [first]; show(); };
  search.addEventListener("change", begin);
  line.addEventListener("change", begin);
  on.addEventListener("click", () => { if (next) { places.push(next); show(); } });
  back.addEventListener("click", () => { places.pop(); show(); });
  show();
}
