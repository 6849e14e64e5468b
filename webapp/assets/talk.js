// The conversation of the Compare tab: its name, which is this browser's, and what was typed since.

import { el } from "./draw.js";
import { marked } from "./examples.js";
import { preferred } from "./page.js";

const NAME = "olive-lab-talk";
const TYPED = "olive-lab-typed";
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

export const draw = {
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
