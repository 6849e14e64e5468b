// What stands in the form of a new run, kept over a reload that nobody asked for.
//
// Gradio loads the page anew once the server is back, if anything it had asked was not answered. What had
// been typed would be gone.

const DRAFT = "olive-lab-draft";
let values = null; // of all inputs, in their order

// The form as it is now. Called when it has settled after a change, connected or not.
export function keep(...now) {
  values = now;
}

// Gradio says so while it waits for the server, and reloads after that.
const isLost = () => document.querySelector(".toast-wrap")?.textContent.includes("Connection to the server was lost");

addEventListener("pagehide", () => {
  if (values && isLost()) sessionStorage.setItem(DRAFT, JSON.stringify(values));
});

export const isKept = () => sessionStorage.getItem(DRAFT) !== null;

// The values kept, once; those there are if another version of the lab has other inputs.
export function restore(...now) {
  const kept = JSON.parse(sessionStorage.getItem(DRAFT));
  sessionStorage.removeItem(DRAFT);
  return kept?.length === now.length ? kept : now;
}
