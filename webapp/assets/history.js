// Runs side by side: differences of their recipes, measurements, and their losses on one chart.

import { draw as plain, el } from "./draw.js";
import { loadPlotly } from "./charts.js";
import { judge } from "./page.js";

const colorOf = (index) => `--lab-run-${index % 8}`;

// Plotly interprets some HTML in names.
const literal = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

function traces(plot, curves) {
  const color = (index) => getComputedStyle(plot).getPropertyValue(colorOf(index)).trim();
  const named = curves.map((curve) => ({ ...curve, name: literal(curve.name) }));
  return named.flatMap(({ index, name, training, held }) => [
    { type: "scatter", mode: "lines", name, legendgroup: name, x: training[0], y: training[1], opacity: 0.75, line: { color: color(index), width: 1.2 } },
    { type: "scatter", mode: "lines+markers", name: `${name}, held-out`, legendgroup: name, showlegend: !training[0].length,
      x: held[0], y: held[1], line: { color: color(index), width: 1.5, dash: "dot" }, marker: { size: 8, color: color(index) } },
  ]);
}

function layout(plot) {
  const color = (name) => getComputedStyle(plot).getPropertyValue(name).trim();
  const axis = { gridcolor: color("--lab-line"), zerolinecolor: color("--lab-line"), automargin: true };
  return {
    margin: { l: 50, r: 12, t: 8, b: 40 }, height: 340, hovermode: "closest", uirevision: "kept",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: color("--lab-text") },
    hoverlabel: { bgcolor: color("--lab-panel"), font: { color: color("--lab-text") }, namelength: -1 },
    legend: { orientation: "h", x: 0, y: -0.22, yanchor: "top" },
    xaxis: { ...axis, title: { text: "Step" } }, yaxis: { ...axis, title: { text: "Loss" } },
  };
}

// The address names the runs while they are shown, so that reloads and shared links show them too.
function keepInAddress(runs) {
  const url = new URL(location.href);
  if (runs.length) url.searchParams.set("compare", runs.join(","));
  else url.searchParams.delete("compare");
  history.replaceState(history.state, "", url);
}

export const draw = {
  async comparison(root, value) {
    root.replaceChildren();
    root.shown = value;
    if (!value) return;
    keepInAddress(value.runs);
    const title = el("h2", { tabindex: "-1" }, `${value.runs.length} runs side by side`);
    const close = el("button", { type: "button", class: "lab-button", onclick: () => { root.replaceChildren(); root.shown = null; keepInAddress([]); } }, "Close");
    const plot = el("div", { class: "lab-plot", role: "img", "aria-label": "Loss of each run by training step" });
    const [differences, metrics] = [el("div", { class: "lab-table" }), el("div", { class: "lab-table" })];
    const chart = el("section", { class: "lab-chart" }, el("h3", {}, "Loss: lines for training, dots for held-out rows"), plot);
    const better = value.judged && !value.why ? el("button", { type: "button", class: "lab-button is-primary", onclick: () => judge(value.judged) }, "Which is better, row by row?") : null;
    const why = value.why ? el("p", { class: "lab-note" }, `Not judged row by row: ${value.why}.`) : "";
    root.append(el("div", { class: "lab-bar" }, title, better ?? "", close), why, differences, ...(value.curves.length ? [chart] : []), metrics);
    for (const [place, table] of [[differences, value.differences], [metrics, value.metrics]]) {
      plain.table(place, table);
      [...place.querySelectorAll("th")].slice(1).forEach((head, index) =>
        head.prepend(el("span", { class: "lab-swatch", style: `background: var(${colorOf(index)})`, "aria-hidden": "true" })));
    }
    if (value.asked) title.focus();
    if (!value.curves.length) return;
    const Plotly = await loadPlotly();
    const show = () => Plotly.react(plot, traces(plot, value.curves), layout(plot), { displayModeBar: false, responsive: true });
    if (root.shown !== value) return;
    await show();
    root.dark?.abort();
    root.dark = new AbortController();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => root.shown === value && show(), { signal: root.dark.signal });
  },
};
