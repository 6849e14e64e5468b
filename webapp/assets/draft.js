// Keeps the form of a new run when Gradio reloads the page.
//
// Gradio reloads the page when the server is back, if one of its requests was not answered. Typed text would
// be lost.

const DRAFT = "olive-lab-draft";
let names = []; // of all inputs, in their order: the ids of their elements
let values = null;

// The form as it is now. Called when it has settled after a change, until the connection is lost.
export function keep(ids, ...now) {
  names = ids;
  values = now;
}

// Changes since then: Gradio runs no events on a page that has lost its server.
function latest(value, index) {
  const input = document.querySelector(`#${CSS.escape(names[index])} :is(textarea, input:not([role=combobox], [type=radio]))`);
  if (typeof value === "boolean") return input?.checked ?? value;
  if (typeof value === "number") return input?.value ? Number(input.value) : value;
  return typeof value === "string" ? input?.value ?? value : value;
}

// Gradio says so while it waits for the server, and reloads after that.
const isLost = () => document.querySelector(".toast-wrap")?.textContent.includes("Connection to the server was lost");

addEventListener("pagehide", () => {
  if (values && isLost()) sessionStorage.setItem(DRAFT, JSON.stringify(values.map(latest)));
});

export const isKept = () => sessionStorage.getItem(DRAFT) !== null;

// The kept values, once; the current ones if another version of the lab has other inputs.
export function restore(...now) {
  const kept = JSON.parse(sessionStorage.getItem(DRAFT));
  sessionStorage.removeItem(DRAFT);
  return kept?.length === now.length ? kept : now;
}
