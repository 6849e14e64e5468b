// What stands in the form of a new run, kept by this browser: over a reload, a lost connection, a closed tab.
//
// Gradio reloads the page once the server is back, if anything it had asked was not answered, and carries
// out no event of a page that has lost its server: what was typed since then is read from the page itself.

const DRAFT = "olive-lab-draft";
let names = []; // of all inputs, in their order: the ids of their elements
let values = null;

// The form as it is now. Called when it has settled after a change, until the connection is lost.
export function keep(ids, ...now) {
  names = ids;
  if (values && JSON.stringify(values) !== JSON.stringify(now)) save(now); // what a new page shows is no draft
  values = now;
}

function save(now) {
  try {
    localStorage.setItem(DRAFT, JSON.stringify({ names, values: now }));
  } catch {
    // a browser that keeps nothing for this page: its form starts empty after a reload
  }
}

// What was written or ticked since then.
function latest(value, index) {
  const input = document.querySelector(`#${CSS.escape(names[index])} :is(textarea, input:not([role=combobox], [type=radio]))`);
  if (typeof value === "boolean") return input?.checked ?? value;
  if (typeof value === "number") return input?.value ? Number(input.value) : value;
  return typeof value === "string" ? input?.value ?? value : value;
}

addEventListener("pagehide", () => {
  const now = values?.map(latest);
  if (now && JSON.stringify(now) !== JSON.stringify(values)) save(now);
});

export function isKept() {
  try {
    return localStorage.getItem(DRAFT) !== null;
  } catch {
    return false;
  }
}

// The form is reset, here and after a reload: to the values of a new page.
export function forget(fresh) {
  values = null;
  try {
    localStorage.removeItem(DRAFT);
  } catch {
    // nothing was kept
  }
  return fresh;
}

// The values kept; those there are if another version of the lab has other inputs.
export function restore(ids, ...now) {
  const kept = JSON.parse(localStorage.getItem(DRAFT));
  return JSON.stringify(kept?.names) === JSON.stringify(ids) ? kept.values : now;
}
