// Which of two runs is better: the verdict in words, numbers below it, and the rows that differ most.

import { draw as plain, el } from "./draw.js";
import { marked } from "./examples.js";

const SIDES = { adapter: "with their adapters", base: "without adapters" };
const number = (value) => Number(value).toLocaleString("en-US");
const loss = (value) => (value === null ? "no number" : value.toFixed(2));
const signed = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(2)}`;

export const draw = {
  judged(root, value, trigger) {
    if (value && !("text" in value || "against" in value || "refused" in value)) { // another run was selected
      root.run = value.run;
      root.replaceChildren();
      if (value.run) keepInAddress(null);
      return;
    }
    if (!value || (root.run && root.run !== value.run)) return; // an answer about a run that is left
    root.run = value.run;
    root.replaceChildren();
    if (value.text) return root.append(el("p", { class: "lab-note", role: "status" }, value.text));
    if (value.refused) {
      keepInAddress(null);
      return root.append(el("p", { class: "lab-wrong", role: "alert" }, value.refused));
    }
    keepInAddress([value.run, value.against]);
    const numbers = el("div", { class: "lab-table" });
    root.append(
      el("h2", {}, `${value.names[1]} against ${value.names[0]} · ${value.against}`),
      ...value.said.map(({ lead, text, outcome }) => el("p", { class: `lab-ruling is-${outcome}`, role: "status" }, el("strong", {}, lead), ` ${text}`)),
      el("p", { class: "lab-note" }, value.differ), numbers, ...apart(value, trigger));
    plain.table(numbers, value.numbers, () => {});
    if (value.seen) root.scrollIntoView();
  },
};

function apart({ apart: { side, rows }, names, answered, changed }, trigger) {
  if (!rows.length) return [el("p", { class: "lab-note" }, "No row differs.")];
  const heads = ["Line", "Prompt", "Expected", "This run", "The other run", "Difference"].map((name) => el("th", { scope: "col" }, name));
  const said = `The ${rows.length === 1 ? "row that differs" : `${rows.length} rows that differ`} most, ${SIDES[side]}. Difference: this run's loss − the other's, in nats a token; above 0 this run is worse. Marked: how its answer differs from the other's.`;
  return [el("h3", {}, "Rows that differ most"), el("p", { class: "lab-note" }, said),
    ...answered.map((text) => el("p", { class: "lab-note" }, text)), ...changed.map((text) => el("p", { class: "lab-wrong", role: "alert" }, text)),
    el("div", { class: "lab-examples" }, el("div", { class: "lab-scroll", tabindex: "0", role: "region", "aria-label": "Rows that differ most" },
      el("table", {}, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows.map((row) => rowOf(row, trigger))))))];
}

function rowOf(row, trigger) {
  const [there, here] = row.losses;
  const difference = there === null || here === null ? null : here - there;
  const named = (at, name, ...content) => el("td", { "data-name": name, class: at }, ...content);
  const answer = (given, words) => (given
    ? [...marked(words, given.text), given.cut ? el("em", {}, " [cut at the limit]") : null]
    : [el("span", { class: "lab-soft" }, "no answer recorded")]);
  const isWorse = difference === null ? here === null : difference > 0;
  const open = row.prompt ? el("button", { type: "button", class: "lab-button", "aria-label": `Ask both in Compare: line ${number(row.line)}`, onclick: () => trigger("select", { id: String(row.line) }) }, "Ask both in Compare") : null;
  return el("tr", {},
    named("is-short", "Line", number(row.line)),
    named(null, "Prompt", row.system ? el("div", { class: "lab-soft" }, `System: ${row.system}`) : null, row.prompt || el("span", { class: "lab-soft" }, "its text is gone"), el("div", { class: "lab-bar" }, open)),
    named(null, "Expected", row.expected),
    named(null, "This run", ...answer(row.answers[1], row.words)),
    named(null, "The other run", ...answer(row.answers[0], null)),
    named(isWorse ? "is-short is-worse" : "is-short", "Difference", el("div", {}, difference === null ? "" : signed(difference)), el("div", { class: "lab-soft" }, `${loss(there)} → ${loss(here)}`)));
}

// The address names both runs while they are shown, so that a reload or a shared link shows them too.
function keepInAddress(runs) {
  const url = new URL(location.href);
  if (runs) url.searchParams.set("judged", runs.join(","));
  else url.searchParams.delete("judged");
  history.replaceState(history.state, "", url);
}
