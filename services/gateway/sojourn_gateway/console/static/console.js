// What the console gains with script: the reader's own time, and lists that follow the audit feed. Everything works without.
"use strict";

const localise = (root) => {
  for (const time of root.querySelectorAll("time:not(.relative)")) {
    const moment = new Date(time.dateTime);
    time.textContent = moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  }
  tick(root);
};

const tick = (root) => {
  for (const time of root.querySelectorAll("time.relative")) {
    const seconds = (new Date(time.dateTime) - Date.now()) / 1000;
    const words = span(Math.abs(seconds));
    const text = seconds > 0 ? `in ${words}` : `${words} ago`;
    if (time.textContent !== text) time.textContent = text;
  }
};

const span = (seconds) => {
  if (seconds >= 172800) return `${Math.floor(seconds / 86400)} d`;
  if (seconds >= 3600) return `${Math.floor(seconds / 3600)} h`;
  if (seconds >= 60) return `${Math.floor(seconds / 60)} min`;
  return `${Math.floor(seconds)} s`;
};

// The fields of a window are in UTC; this says what that is where the reader is.
const explain = (field) => {
  const words = document.createElement("small");
  words.className = "local";
  const say = () => {
    const moment = new Date(`${field.value}Z`);
    words.textContent = isNaN(moment) ? "" : `${moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" })} your time`;
  };
  field.after(words);
  field.addEventListener("input", say);
  say();
};

const follow = (live) => {
  const kinds = live.dataset.live.split(" ");
  let waiting = null;

  // A form that somebody fills in is not taken away under their hands.
  const isInUse = () =>
    live.contains(document.activeElement) && document.activeElement.matches("input, textarea, select") ||
    [...live.querySelectorAll("input:not([type=hidden]), textarea")].some((field) => field.value !== field.defaultValue);

  const offer = () => {
    if (document.getElementById("news")) return;
    const button = document.createElement("button");
    button.id = "news";
    button.className = "news";
    button.textContent = "Something changed: show it";
    button.addEventListener("click", () => { button.remove(); refresh(true); });
    live.before(button);
  };

  const refresh = async (anyway) => {
    waiting = null;
    if (!anyway && isInUse()) return offer();
    const answer = await fetch(location.pathname + location.search, { headers: { Accept: "text/html" }, cache: "no-store" });
    if (answer.redirected) return location.reload();
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById(live.id);
    if (!fresh || (!anyway && isInUse())) return;
    for (const open of live.querySelectorAll("details[open][id]")) fresh.querySelector(`#${CSS.escape(open.id)}`)?.setAttribute("open", "");
    live.replaceChildren(...fresh.childNodes);
    localise(live);
  };

  const feed = new EventSource("/api/v1/audit/stream");
  feed.onmessage = (message) => {
    const type = JSON.parse(message.data).type.replace(/^sojourn\./, "");
    if (!waiting && kinds.some((kind) => type.startsWith(kind))) waiting = setTimeout(refresh, 150);
  };
};

localise(document);
document.querySelectorAll("input[type=datetime-local]").forEach(explain);
setInterval(() => tick(document), 1000);
const live = document.querySelector("[data-live]");
if (live && window.EventSource) follow(live);
