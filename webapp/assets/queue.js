// The queue: running jobs, waiting runs in order, and the name under which this browser queues runs.

import { Lost, ask, askJson } from "./ask.js";
import { el } from "./draw.js";

const POLL_MS = 2000;
const HIDDEN_MS = 15000;
const YOU = "olive-lab-you";
const MOST_LETTERS = 40;
const ASK_CANCEL = "Take this run out of the queue? A retry queues it again; finished stages are kept.";

// -- the user's name: stored in the browser, sent with queued runs -----------------------------------------

let typed = ""; // in a browser that keeps nothing for this page, for as long as it is open

export function nameField(root) {
  const input = root.querySelector("input");
  input.value = you();
  input.maxLength = MOST_LETTERS;
  input.addEventListener("input", () => {
    typed = input.value.trim();
    try {
      localStorage.setItem(YOU, typed);
    } catch {
      // it lasts as long as the page
    }
  });
}

function you() {
  try {
    return localStorage.getItem(YOU) ?? typed;
  } catch {
    return typed;
  }
}

// The inputs of an event with this browser's name as the last of them.
export function signed(...given) {
  return [...given.slice(0, -1), you()];
}

// -- the queue ------------------------------------------------------------------------------------------

class Queue {
  constructor(root) {
    this.title = el("summary");
    this.note = el("p", { class: "lab-note", role: "status" });
    this.pause = el("button", { type: "button", class: "lab-button", id: "queue-pause", onclick: () => this.act(`queue/${this.facts.paused ? "open" : "paused"}`) });
    this.list = el("ol", { class: "lab-waiting", "aria-label": "Waiting runs" });
    this.more = el("p", { class: "lab-note" });
    this.running = el("p", { class: "lab-note" });
    this.root = root;
    this.root.append(el("details", { class: "lab-queue", id: "queue" }, this.title,
      el("div", { class: "lab-bar" }, this.running, this.pause), this.note, this.list, this.more));
    this.root.hidden = true;
    this.drawn = "";
    this.acts = 0; // what was asked for here, and what was answered
    document.addEventListener("visibilitychange", () => document.hidden || this.poll());
    this.poll();
  }

  async poll() {
    clearTimeout(this.timer);
    const acts = this.acts;
    try {
      const facts = await askJson("queue.json");
      if (facts && acts === this.acts) this.draw(facts); // else it may be how things stood before
    } catch (error) {
      if (!(error instanceof Lost)) throw error;
    } finally { // whatever happened, ask again
      this.timer = setTimeout(() => this.poll(), document.hidden ? HIDDEN_MS : POLL_MS);
    }
  }

  draw(facts) {
    const text = JSON.stringify(facts);
    if (text === this.drawn) return; // a button that is being reached for stays where it is
    this.drawn = text;
    this.facts = facts;
    const count = facts.waiting.length + facts.more;
    this.root.hidden = !count && !facts.paused;
    this.title.textContent = `Queue: ${facts.running.length} running, ${count} waiting${facts.paused ? " · paused" : ""}`;
    this.running.textContent = facts.paused ? "Paused: running jobs finish, nothing new starts." : "People take turns; you choose the order of your own runs.";
    this.pause.textContent = facts.paused ? "Resume the queue" : "Pause the queue";
    this.pause.classList.toggle("is-primary", facts.paused);
    this.more.textContent = facts.more ? `and ${facts.more} more` : "";
    const focused = document.activeElement?.id;
    this.list.replaceChildren(...facts.waiting.map((run) => this.row(run)));
    if (focused) document.getElementById(focused)?.focus();
  }

  row(run) {
    const button = (where, sign, words) => el("button", { type: "button", class: "lab-button", id: `${where}-${run.id}`, title: words,
      "aria-label": `${words}: ${run.name}`, onclick: () => this.act(`runs/${run.id}/move/${where}`) }, sign);
    return el("li", {},
      el("button", { type: "button", class: "lab-link", onclick: async () => (await import("./page.js")).open(run.id) }, run.name),
      el("span", { class: "lab-note" }, [run.urgent ? "goes on first" : "", run.owner].filter(Boolean).join(" · ")),
      el("span", { class: "lab-moves" }, button("first", "⤒", "To the front"), button("up", "↑", "Earlier"), button("down", "↓", "Later"), button("last", "⤓", "To the end"),
        el("button", { type: "button", class: "lab-button", id: `cancel-${run.id}`, title: "Cancel", "aria-label": `Cancel: ${run.name}`,
          onclick: () => confirm(ASK_CANCEL) && this.act(`runs/${run.id}/cancel`) }, "✕")));
  }

  async act(path) {
    this.acts += 1;
    try {
      const reply = await ask(path, { method: "POST" });
      const facts = await reply.json();
      this.acts += 1;
      this.note.textContent = facts.error ?? facts.detail ?? "";
      if (facts.waiting) this.draw(facts);
      else this.poll();
    } catch (error) {
      this.note.textContent = "The lab did not answer; try again.";
      if (!(error instanceof Lost)) throw error;
    }
  }
}

export function mountQueue(root) {
  new Queue(root);
}
