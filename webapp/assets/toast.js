// Tells when a run ends, on any tab: a toast and, if wanted, a notification.

import { Lost, askJson } from "./ask.js";
import { el } from "./draw.js";

const POLL_MS = 5000;
const HIDDEN_MS = 15000;
const SHOWN_MS = 10000;
const KNOWN = "lab-activity"; // what this tab knew last: a reload goes on from there
const NOTIFY = "lab-notify";
const WORDS = { done: "is done", failed: "failed", canceled: "was canceled", interrupted: "was interrupted" };

// Poll for runs that have ended; `open` shows one.
export function announceRuns(open) {
  const place = el("div", { class: "lab-toasts", role: "status", "aria-label": "Runs that have ended" });
  document.body.append(place);
  let timer = null;
  const look = async () => {
    clearTimeout(timer);
    try {
      for (const run of await ended()) announce(place, run, open);
    } catch (error) {
      if (!(error instanceof Lost)) throw error; // the next look finds what this one missed
    }
    clearTimeout(timer);
    timer = setTimeout(look, document.hidden ? HIDDEN_MS : POLL_MS);
  };
  document.addEventListener("visibilitychange", () => document.hidden || look());
  look();
}

async function ended() {
  const known = JSON.parse(sessionStorage.getItem(KNOWN) ?? "{}");
  const query = new URLSearchParams({ after: known.newest ?? "", were: (known.active ?? []).slice(0, 100).join(",") });
  const told = await askJson(`activity.json?${query}`);
  if (!told) return [];
  if (JSON.stringify(known) !== (sessionStorage.getItem(KNOWN) ?? "{}")) return []; // another look was quicker
  sessionStorage.setItem(KNOWN, JSON.stringify({ newest: told.newest, active: told.active }));
  return told.ended;
}

function announce(place, run, open) {
  const text = `${run.name} ${WORDS[run.status] ?? run.status}`;
  const link = el("a", { href: `?run=${encodeURIComponent(run.id)}&tab=lab`, onclick: (event) => { event.preventDefault(); open(run.id); close(); } }, text);
  const toast = el("div", { class: `lab-toast is-${run.status}` }, el("span", { class: "lab-icon", "aria-hidden": "true" }), link,
    el("button", { type: "button", "aria-label": "Close", onclick: () => close() }, "×"));
  let timer = null;
  const close = () => toast.remove();
  const stay = () => clearTimeout(timer);
  const leave = () => { stay(); timer = setTimeout(close, SHOWN_MS); };
  for (const event of ["mouseenter", "focusin"]) toast.addEventListener(event, stay);
  for (const event of ["mouseleave", "focusout"]) toast.addEventListener(event, leave);
  place.append(toast);
  leave();
  if (document.hidden && wantsNotifications()) {
    const note = new Notification(text, { tag: run.id });
    note.onclick = () => { window.focus(); open(run.id); };
  }
}

function wantsNotifications() {
  try {
    return window.Notification?.permission === "granted" && localStorage.getItem(NOTIFY) === "yes";
  } catch {
    return false; // a browser that keeps nothing for this page
  }
}

// The button that switches notifications on and off. The browser is asked only when it is clicked.
export function notifyButton() {
  const draw = () => {
    button.textContent = wantsNotifications() ? "Notifications on" : "Notify me";
    button.setAttribute("aria-pressed", String(wantsNotifications()));
  };
  const click = async () => {
    const wanted = !wantsNotifications() && (await Notification.requestPermission()) === "granted";
    try {
      localStorage.setItem(NOTIFY, wanted ? "yes" : "no");
    } catch {
      // it stays off
    }
    draw();
  };
  const button = el("button", { type: "button", class: "lab-button", id: "run-notify", onclick: click, title: "Notify me when a run ends while this page is in the background" });
  draw();
  return button;
}

export const canNotify = () => window.isSecureContext && "Notification" in window && Notification.permission !== "denied";
