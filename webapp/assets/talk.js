// The conversation of the Compare tab: its name, which is this browser's, and what was typed since.

import { el } from "./draw.js";
import { marked } from "./examples.js";
import { preferred } from "./page.js";

const NAME = "olive-lab-talk";
const SERVED = "olive-lab-served";
const TYPED = "olive-lab-typed";
let served = null;
let made = null; // in a browser that keeps nothing for this page, a name for as long as it is open

function kept(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

function keep(key, text) {
  try {
    localStorage.setItem(key, text);
  } catch {
    // it lasts as long as the page
  }
}

// 16 random bytes, as text: whoever knows the name reads the conversation.
function fresh() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

export function own() {
  made ??= kept(NAME) ?? fresh();
  keep(NAME, made);
  return made;
}

// The model, and this browser's name for what it serves: whoever knows the name sees the token.
export function serving(model) {
  served ??= kept(SERVED) ?? fresh();
  keep(SERVED, served);
  return [model, served];
}

// The inputs of a question, with the name of the conversation in its place.
export function named(run, also, _, ...rest) {
  keep(TYPED, "");
  return [run, also, own(), ...rest];
}

export function typed(prompt) {
  keep(TYPED, prompt);
}

// The inputs of an opened tab: the run just viewed, else the one chosen there.
export function arrived(run, filledFor) {
  return [...preferred(run, filledFor), own(), kept(TYPED) ?? ""];
}

// One box a field of the template: the prompt is the JSON of what is in them, which the hidden box has.

let boxes = []; // [name, its box], none where the template has one field
let first = ""; // the chosen model's own first field, which gets a prompt that is no JSON

function promptBox() {
  return document.querySelector("#compare-prompt textarea");
}

function texts(prompt) {
  try {
    const row = JSON.parse(prompt);
    return row && typeof row === "object" && !Array.isArray(row) ? row : null;
  } catch {
    return null;
  }
}

// The prompt, put into the boxes; what is being typed there stays.
export function spread(prompt) {
  const row = texts(prompt) ?? { [first]: prompt };
  for (const [name, box] of boxes) {
    const text = String(Object.hasOwn(row, name) ? row[name] : "");
    if (box.value !== text) box.value = text;
  }
}

// What is in the boxes, as the prompt.
function gather() {
  put(JSON.stringify(Object.fromEntries(boxes.map(([name, box]) => [name, box.value]))));
}

function put(prompt) {
  const box = promptBox();
  if (!box || box.value === prompt) return;
  box.value = prompt;
  box.dispatchEvent(new Event("input", { bubbles: true }));
}

function labelled({ name, info }, most) {
  const box = el("textarea", { rows: "2", maxlength: String(most), oninput: gather, onkeydown: (event) => {
    if (event.key === "Enter" && event.shiftKey) {
      event.preventDefault();
      document.getElementById("compare-go")?.click();
    }
  } });
  boxes.push([name, box]);
  return el("label", {}, el("span", {}, name), info ? el("small", {}, info) : null, box);
}

export const draw = {
  boxes(root, value) {
    const had = boxes.length ? texts(promptBox()?.value ?? "") : null;
    boxes = [];
    first = value?.first ?? "";
    root.replaceChildren(...(value?.note ? [el("p", {}, value.note)] : []),
      ...(value?.fields ?? []).map((field) => labelled(field, value.most)));
    document.getElementById("compare-prompt")?.classList.toggle("is-in-boxes", boxes.length > 0);
    if (boxes.length) {
      spread(promptBox()?.value ?? "");
    } else if (had && Object.hasOwn(had, root.dataset.first)) {
      put(String(had[root.dataset.first])); // another model is asked no longer: one box is left
    }
    root.dataset.first = first;
  },

  // Earlier turns of a column, oldest first.
  turns(root, value) {
    root.replaceChildren();
    if (!value) return;
    root.append(el("ol", { tabindex: "0", "aria-label": "Earlier turns" }, ...value.flatMap(([asked, answered]) => [
      el("li", { class: "is-asked" }, asked), el("li", {}, answered.trim())])));
    root.firstElementChild.scrollTop = root.firstElementChild.scrollHeight;
  },

  // Words of other columns that differ from the first one's.
  marks(root, value) {
    root.replaceChildren();
    for (const [name, words] of value?.others ?? []) {
      root.append(el("h3", {}, `${name}, against ${value.first}`),
        el("p", {}, ...marked(words, "Too long to be marked.")));
    }
  },
};
