// Keeps the status page live: fetches it every two seconds and puts in place what differs, so that focus, scroll, open
// details and what is being typed stay. The page is whole without this file.
"use strict";

const PERIOD = 2000;
const SLOWEST = 30000;

const live = document.getElementById("live");
let timer = 0;
let running = null;
let lostSince = null;

// Turns `old` into `fresh`, touching only what differs. Elements with an id are themselves wherever they stand.
function morph(old, fresh) {
  if (old.isEqualNode(fresh) || old.hasAttribute?.("data-keep")) return;
  if (old.nodeName !== fresh.nodeName || (old.id ?? "") !== (fresh.id ?? "")) {
    old.replaceWith(fresh);
  } else if (old.nodeType !== Node.ELEMENT_NODE) {
    old.data = fresh.data;
  } else {
    morphAttributes(old, fresh);
    morphChildren(old, fresh);
  }
}

function morphAttributes(old, fresh) {
  for (const { name } of [...old.attributes]) {
    // Whether details are open is the reader's to say.
    if (!fresh.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
}

function morphChildren(old, fresh) {
  const ids = new Set([...fresh.children].map((child) => child.id).filter(Boolean));
  for (const child of [...old.children]) if (child.id && !ids.has(child.id)) child.remove();
  const known = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
  let next = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const same = child.id ? known.get(child.id) : next && !next.id && next.nodeName === child.nodeName ? next : null;
    if (!same) {
      old.insertBefore(child, next);
      continue;
    }
    if (same === next) next = next.nextSibling;
    else old.insertBefore(same, next);
    morph(same, child);
  }
  while (next) {
    const gone = next;
    next = next.nextSibling;
    gone.remove();
  }
}

function say(words, bad = false) {
  if (live.textContent !== words) live.textContent = words;
  live.className = bad ? "bad" : "";
}

// The server answered with a page, or with something else (a log-in form, a refusal).
async function show(response, keepNotice) {
  if (!(response.headers.get("Content-Type") ?? "").startsWith("text/html")) {
    throw new Error(`the server answers ${response.status}`);
  }
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  if (!page.getElementById("status")) return location.reload();
  if (keepNotice) page.getElementById("notice").replaceWith(document.getElementById("notice").cloneNode(true));
  for (const part of ["header", "main", "footer"]) morph(document.querySelector(part), page.querySelector(part));
  lostSince = null;
  say("Live");
}

function lost(error) {
  lostSince ??= new Date();
  const why = error instanceof TypeError || error.name === "TimeoutError" ? "the server cannot be reached" : error.message;
  say(`Not live since ${lostSince.toLocaleTimeString()}: ${why}; trying again`, true);
}

async function refresh() {
  const mine = (running = new AbortController());
  try {
    const signal = AbortSignal.any([mine.signal, AbortSignal.timeout(15000)]);
    await show(await fetch(location.href, { signal, cache: "no-store" }), true);
  } catch (error) {
    if (mine.signal.aborted) return;
    lost(error);
  }
  running = null;
  const pause = lostSince ? Math.min(SLOWEST, Math.max(PERIOD, (Date.now() - lostSince) / 2)) : PERIOD;
  timer = setTimeout(refresh, pause);
}

function stop() {
  clearTimeout(timer);
  running?.abort();
  running = null;
}

function start() {
  stop();
  if (document.hidden) say("Paused");
  else refresh();
}

// A button: its form is sent without leaving the page, and the page that comes back is put in place.
async function submit(event) {
  const form = event.target;
  // Searching and leaving are ordinary navigation.
  if (!form.classList.contains("action")) return;
  event.preventDefault();
  if (form.hasAttribute("aria-busy")) return;
  form.setAttribute("aria-busy", "true");
  stop();
  try {
    await show(await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) }), false);
  } catch (error) {
    lost(error);
  }
  form.removeAttribute("aria-busy");
  timer = setTimeout(start, PERIOD);
}

// A notice is shown once: a reload must not look for it again.
const address = new URL(location.href);
if (address.searchParams.has("notice")) {
  address.searchParams.delete("notice");
  history.replaceState(null, "", address);
}
document.addEventListener("submit", submit);
document.addEventListener("visibilitychange", start);
timer = setTimeout(start, document.hidden ? 0 : PERIOD);
say(document.hidden ? "Paused" : "Live");
