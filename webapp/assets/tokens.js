// One row as its tokens: what the model is given, what it learns, and what is cut.

import { el } from "./draw.js";

const KINDS = { given: "Prompt", special: "Special token", learned: "Trained on", end: "End of turn, trained on", cut: "Cut" };
const shown = (text) => text.replaceAll("\n", "↵\n");

function token({ id, text, kind }) {
  return el("span", { class: `lab-token is-${kind}`, title: `${KINDS[kind]} · id ${id}` }, shown(text));
}

export const draw = {
  tokens(root, value) {
    root.replaceChildren();
    if (!value) return;
    if (value.problems) {
      root.append(el("ul", { class: "lab-note", role: "alert" }, ...value.problems.map((text) => el("li", {}, text))));
      return;
    }
    if (!value.samples) {
      root.append(el("p", { class: "lab-note", role: "status" }, value.text));
      return;
    }
    const samples = value.samples.map((tokens) =>
      el("pre", { tabindex: "0", "aria-label": "Tokens of the row" }, ...tokens.map(token)));
    root.append(
      el("p", { class: "lab-legend" }, ...Object.entries(KINDS).map(([kind, words]) =>
        el("span", { class: `lab-token is-${kind}` }, `${words}: ${value.counts[kind]}`))),
      ...samples,
      el("p", { class: "lab-note" }, value.text),
      el("p", { class: `lab-note ${value.equal ? "is-good" : "is-bad"}` }, value.verdict));
  },
};
