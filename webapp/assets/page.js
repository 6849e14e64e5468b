// Functions that the page calls: show a run, choose a tab, and button actions that need no server.

import { Lost, ask, askJson } from "./ask.js";
import { isKept } from "./draft.js";
import { el } from "./draw.js";
import { ASK_CANCEL, RunView, modelOf, runPath } from "./run.js";
import { announceRuns } from "./toast.js";

const CANCEL_MS = 500;
const CANCEL_MOST_MS = 30_000; // a stage is given some time to end by itself
const SOON_MS = 150;

let view = null;
let wanted = null;
let preferredRun = null;
let arrived = false;
let chosen = null; // the tab that the reader went to before that

// Tabs that the bar has no room for are in a menu at its end.
const FOLDED = "#tabs .overflow-dropdown button";
const foldedName = (button) => button.textContent.trim().toLowerCase();

addEventListener("click", (event) => {
  const button = event.isTrusted && event.target.closest(`[role=tab][id^=tab-], ${FOLDED}`);
  if (button && !arrived) chosen = button.id ? button.id.replace(/^tab-|-button$/g, "") : foldedName(button);
}, true);

export function mount(root) {
  view = new RunView(root, { compare, vote, worse });
  if (wanted) view.open(wanted);
}

announceRuns(open);

function show(id) {
  wanted = id;
  if (view && view.id !== id) view.open(id);
}

export function open(id) {
  if (!id) return;
  show(id);
  go("lab");
}

// Choose a tab, as a click does; right after loading its button may not be there yet.
export function go(name, tries = 100) {
  const button = document.getElementById(`tab-${name}-button`) ??
    [...document.querySelectorAll(FOLDED)].find((folded) => foldedName(folded) === name);
  if (button) button.click();
  else if (tries) setTimeout(() => go(name, tries - 1), 50);
}

// On opening the page: show the run and tab in its address.
export function arrive(first, run) {
  arrived = true;
  if (isKept()) soon("restore-now");
  if (run) show(run);
  const judged = new URL(location.href).searchParams.get("judged")?.split(",") ?? [];
  if (judged.length === 2) {
    [seen, against] = judged;
    soon("runs-see-judged");
  }
  tab(chosen ?? first);
  if (!chosen) go(first);
}

// Click a button once the page has been quiet for a moment; one of a tab that was not open yet, once it is.
const timers = new Map();
export function soon(id) {
  clearTimeout(timers.get(id));
  timers.set(id, setTimeout(() => {
    const button = document.getElementById(id);
    if (button) button.click();
    else soon(id);
  }, SOON_MS));
}

// Check the dataset chosen on the Data tab; once what a page shows at first is there, which would hide it else.
let looked;
const firstLook = new Promise((resolve) => looked = resolve);
export const firstLooked = () => looked();
export function checkSoon() {
  firstLook.then(() => soon("data-check-now"));
}

// The run a tab should choose: the one just viewed, else the one chosen there.
export function preferred(chosen, ...rest) {
  const run = preferredRun ?? chosen;
  preferredRun = null;
  return [run, ...rest];
}

// Open the Compare tab with a run.
export function compare(run) {
  preferredRun = run;
  go("compare");
}

// Open the Vote tab with a run.
export function vote(run) {
  preferredRun = run;
  go("vote");
}

// Open the Runs tab with a run, at the examples that its adapter is worse on.
let seen = "";
export function worse(run) {
  seen = run;
  go("runs");
  soon("runs-see-worse");
}

export const seenRun = () => [seen];

// Open a run at the verdict on it against another one.
let against = "";
export function judge([run, other]) {
  [seen, against] = [run, other];
  go("runs");
  soon("runs-see-judged");
}

export const seenPair = () => [seen, against];

// Gradio's label for the file box differs from its visible text, so speech control could not choose it. The
// box may come later than `element`, which is in the same column.
export function nameUpload(element, id) {
  const root = element.closest(".column");
  const name = () => root.querySelectorAll(`#${id} button.upload-container[aria-label]`).forEach((button) => button.removeAttribute("aria-label"));
  new MutationObserver(name).observe(root, { childList: true, subtree: true });
  name();
}

// Keep the tab in the address, so that a reload comes back to it.
export function tab(name) {
  if (!arrived) return; // the tab that Gradio shows before the address has been read
  // Gradio may still report the tab that it showed first, when another one is shown by now.
  if (document.getElementById(`tab-${name}-button`)?.getAttribute("aria-selected") === "false") return;
  const url = new URL(location.href);
  url.searchParams.set("tab", name);
  history.replaceState(history.state, "", url);
}

export async function cancel(run) {
  if (confirm(ASK_CANCEL)) await ask(`${runPath(run)}/cancel`, { method: "POST" });
}

// Wait until a run that is being canceled has ended or no longer exists.
export async function canceled(run) {
  for (const end = Date.now() + CANCEL_MOST_MS; Date.now() < end;) {
    try {
      const told = await askJson(`${runPath(run)}.json`);
      if (!told?.cancel_requested) return;
    } catch (error) {
      if (!(error instanceof Lost)) throw error; // it is asked again
    }
    await new Promise((resolve) => setTimeout(resolve, CANCEL_MS));
  }
}

// Download a run's exported model. The browser does it alone, so the page may be closed.
export function take(run) {
  el("a", { href: modelOf(run), download: true }).click();
}

export function download(text, name) {
  const file = `${(name || "recipe").replace(/[^A-Za-z0-9_-]+/g, "-").replace(/^-+|-+$/g, "") || "recipe"}.yaml`;
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type: "application/yaml" })), download: file });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
