// What is wrong, said at the field where it is.

import { draw as plain, el } from "./draw.js";

const MARK = "lab-wrong";

export const draw = {
  // Problems of the form: a list whose points lead to their fields, where each is said too.
  refused(root, value) {
    plain.problems(root, value && { ...value, items: [] });
    const items = value?.items ?? [];
    root.classList.add("lab-problems");
    root.querySelector("ul")?.append(...items.map(({ at, text }) => el("li", {},
      at ? el("button", { type: "button", class: "lab-link", onclick: () => reach(at) }, text) : text)));
    root.wrong = items.filter((item) => item.at);
    mark();
  },
};

// Show each sentence of all lists below its field, once; those of before go. A field that is folded away gets it
// all the same.
function mark() {
  document.querySelectorAll(`.${MARK}`).forEach((old) => old.remove());
  document.querySelectorAll(".is-wrong").forEach((field) => field.classList.remove("is-wrong"));
  const items = [...document.querySelectorAll(".lab-refused")].flatMap((root) => root.wrong ?? []);
  for (const { at, said } of new Map(items.map((item) => [`${item.at} ${item.said}`, item])).values()) {
    const field = document.getElementById(at);
    if (!field) continue; // its part of the page was never opened; the list names it
    field.classList.add("is-wrong");
    field.append(el("p", { class: MARK }, said));
  }
}

// Open what a field is folded into, and go there.
function reach(at, tries = 40) {
  const field = document.getElementById(at);
  if (field?.offsetParent) {
    field.scrollIntoView({ block: "center" });
    field.querySelector("input, textarea")?.focus({ preventScroll: true });
    return;
  }
  const folded = [...document.querySelectorAll("#new-run .label-wrap:not(.open)")].filter((label) => label.offsetParent);
  const next = folded.find((label) => label.closest(".block, .accordion, [id]")?.contains(field)) ?? folded.find((label) => label.textContent.includes("All options"));
  next?.click();
  if (tries) requestAnimationFrame(() => reach(at, tries - 1));
}
