"use strict";
// The live page of evals.search. Whatever comes from outside is set as text, never as markup.

const byId = (id) => document.getElementById(id);
const state = JSON.parse(byId("live").dataset.state);
const sections = [...byId("sides").children];
const alphas = state.models.slice(1).map(() => 1);
let view = "photos";
let photo = null; // {key, url, file, name}: key is a place in the folder or an upload's name
let running = null; // of the newest request; older ones are aborted
let timer = 0; // of the next request

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const photoUrl = (place, size) => `/photos/${place}?size=${size}&v=${state.version}`;
const captions = () => [
  ...new Set(byId("texts").value.split("\n").map((line) => line.trim()).filter(Boolean)),
];

function say(text) {
  byId("status").textContent = text;
}

function fail(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options) {
  const answer = await fetch(path, options);
  let found = {};
  try {
    found = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (!answer.ok) throw new Refused(answer.status, found.error || `status ${answer.status}`);
  return found;
}

// Asks again until the photos are encoded by a mixture's vision tower, which takes several batches.
async function answerOf(path, options) {
  for (;;) {
    const found = await ask(path, options);
    if (!found.pending) return found;
    const { done, of } = found.pending;
    say(`encoding the photos with the mixed weights: ${done} of ${of}`);
  }
}

function stop() {
  clearTimeout(timer);
  if (running) running.abort();
  running = null;
  timer = 0;
}

function schedule(wait = 120) {
  stop();
  timer = setTimeout(update, wait);
}

async function update() {
  timer = 0;
  const query = byId("query").value.trim();
  const lines = captions();
  const idle = view === "photos" ? !query : !photo || !lines.length;
  if (idle) {
    fail("");
    showEmpty();
    return;
  }
  const mine = (running = new AbortController());
  byId("sides").classList.add("stale");
  try {
    const found = view === "photos" ? await search(query, mine.signal) : await rank(lines, mine.signal);
    if (running !== mine) return;
    fail("");
    show(found, lines);
  } catch (error) {
    if (running !== mine || error.name === "AbortError") return;
    say("");
    if (error instanceof Refused) {
      clear();
      fail(error.message);
    } else {
      fail("The server does not answer. Is it still running? This page tries again every 2 seconds.");
      timer = setTimeout(update, 2000);
    }
  } finally {
    if (running === mine) {
      running = null;
      byId("sides").classList.remove("stale");
    }
  }
}

function search(query, signal) {
  return answerOf(`/api/search?${new URLSearchParams({ q: query, alpha: alphas.join(",") })}`, { signal });
}

async function rank(lines, signal) {
  const send = () =>
    answerOf("/api/captions", {
      method: "POST",
      body: JSON.stringify({ photo: photo.key, captions: lines, alpha: alphas }),
      signal,
    });
  try {
    return await send();
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 404 || !photo.file) throw error;
    photo.key = (await upload(photo.file)).photo; // the server was started again
    return send();
  }
}

const upload = (file) => ask("/api/photos", { method: "POST", body: file });

async function take(file) {
  turnTo("captions");
  stop();
  photo = null;
  clear();
  showChosen();
  if (file.size > state.limits.bytes) {
    say("");
    fail(`${file.name} has ${Math.round(file.size / 2 ** 20)} MiB; ${state.limits.bytes / 2 ** 20} are taken.`);
    return;
  }
  say("decoding …");
  fail("");
  const mine = (running = new AbortController());
  try {
    const found = await upload(file);
    if (running !== mine) return;
    choose({ key: found.photo, url: found.url, file, name: file.name });
  } catch (error) {
    if (running !== mine) return;
    say("");
    const gone = "the server does not answer, or closed the connection";
    fail(`${file.name}: ${error instanceof Refused ? error.message.replace(/^this file: /, "") : gone}`);
  }
}

function choose(chosen) {
  photo = chosen;
  turnTo("captions");
  showChosen();
  if (!captions().length) byId("texts").focus();
}

function turnTo(name) {
  view = name;
  for (const each of ["photos", "captions"]) {
    byId(each).hidden = each !== name;
    const tab = byId(`tab-${each}`);
    tab.setAttribute("aria-selected", each === name);
    tab.tabIndex = each === name ? 0 : -1;
  }
  clear();
  schedule(0);
}

function clear() {
  for (const section of sections) section.querySelector("[data-found]").replaceChildren();
  byId("empty").replaceChildren();
  byId("sides").hidden = false;
  byId("sides").classList.remove("stale");
}

function showEmpty() {
  clear();
  if (view === "captions") {
    const how = state.uploads ? "Drop a photo anywhere on this page, or pick one" : "Choose a photo";
    say(photo ? "Write captions, one a line." : `${how}, and write captions, one a line.`);
    return;
  }
  byId("sides").hidden = true;
  say("Type what to look for, or choose one of these photos to rank captions for it.");
  const hits = element("div", { className: "hits" });
  for (const place of state.first) hits.append(hit({ place, name: "" }));
  byId("empty").append(hits);
}

function showChosen() {
  const empty = state.uploads ? "Drop a photo here" : "Choose one under Find photos";
  byId("chosen").replaceChildren(photo ? element("img", { src: photo.url, alt: photo.name }) : empty);
  byId("drop").querySelector(".pick")?.remove();
  byId("file").disabled = !state.uploads;
  if (!state.uploads) return;
  byId("drop").append(element("span", { className: "pick", textContent: photo ? "another photo" : "pick one" }));
}

function show(found, lines) {
  const milliseconds = Math.round(found.seconds * 1000);
  const cut = found.cut ? " The text is longer than a model reads, and is cut." : "";
  const count = found.columns[0].rows.length;
  const one = view === "photos" ? "photo" : "caption";
  const what = `${view === "photos" ? "the first " : ""}${count} ${one}${count > 1 ? "s" : ""}`;
  say(`${what}, ${milliseconds} ms.${cut}`);
  byId("empty").replaceChildren();
  byId("sides").hidden = false;
  found.columns.forEach((column, place) => {
    const list = view === "photos" ? photosOf(column) : ranksOf(column, lines);
    sections[place].querySelector("[data-found]").replaceChildren(list);
  });
}

function moved(row) {
  if (!row.was) return [];
  return [" ", element("span", { className: "badge", textContent: `was ${row.was.toLocaleString("en")}` })];
}

function photosOf(column) {
  const hits = element("div", { className: "hits" });
  for (const row of column.rows) hits.append(hit(row));
  return hits;
}

function hit(row) {
  const image = element("img", { src: photoUrl(row.place, "small"), alt: row.name, loading: "lazy" });
  image.addEventListener("error", () => {
    image.replaceWith(element("span", { className: "nophoto", textContent: "cannot be read any more" }));
  });
  const button = element("button", { className: "hit", type: "button", title: row.name }, image);
  button.setAttribute("aria-label", row.name ? `${row.name}: rank captions` : `photo ${row.place + 1}: rank captions`);
  if (row.rank) {
    const score = element("span", { className: "line" }, element("b", { textContent: row.rank }));
    score.append(` ${row.score.toFixed(3)}`, ...moved(row));
    button.append(score, element("span", { className: "line name", textContent: row.name }));
  }
  button.addEventListener("click", () => {
    choose({ key: row.place, url: photoUrl(row.place, "large"), file: null, name: row.name });
  });
  return button;
}

function ranksOf(column, lines) {
  const ranks = element("ol", { className: "ranks" });
  for (const row of column.rows) {
    const bar = element("span", { className: "bar" });
    bar.style.width = `${100 * row.share}%`;
    const numbers = element("span", { className: "line" });
    numbers.append(`${(100 * row.share).toFixed(1)} %, cosine ${row.score.toFixed(3)}`, ...moved(row));
    ranks.append(
      element(
        "li",
        { className: "rank" },
        element("b", { textContent: `${row.rank} ` }),
        lines[row.caption],
        element("span", { className: "track" }, bar),
        numbers,
      ),
    );
  }
  return ranks;
}

function addSlider(section, place) {
  const { name, fixed } = state.models[place];
  const mix = section.querySelector("[data-mix]");
  if (fixed) {
    if (place) mix.textContent = `No mixture: ${fixed}`;
    return;
  }
  const value = element("output", { textContent: "1" });
  const slider = element("input", { type: "range", min: 0, max: state.steps, step: 1, value: state.steps });
  slider.setAttribute("aria-label", `alpha between ${state.models[0].name} and ${name}`);
  slider.addEventListener("input", () => {
    alphas[place - 1] = Number(slider.value) / state.steps;
    value.textContent = alphas[place - 1];
    schedule();
  });
  const label = element("label", {}, "weights: alpha ", value, slider);
  const ends = element("span", { className: "ends" }, element("span", { textContent: state.models[0].name }));
  ends.append(element("span", { textContent: name }));
  mix.append(label, ends);
}

// The next button in a direction, by where it is on the screen: columns may have any width.
function neighbour(button, key) {
  const from = button.getBoundingClientRect();
  const isRow = key === "ArrowLeft" || key === "ArrowRight";
  const sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
  let best = null;
  let least = Infinity;
  for (const other of document.querySelectorAll("button.hit")) {
    const to = other.getBoundingClientRect();
    const [along, across] = isRow ? [to.x - from.x, to.y - from.y] : [to.y - from.y, to.x - from.x];
    if (along * sign < 4 || (isRow && Math.abs(across) > from.height / 2)) continue;
    const distance = Math.abs(along) + 3 * Math.abs(across);
    if (distance < least) [best, least] = [other, distance];
  }
  return best;
}

function onKey(event) {
  const target = event.target;
  const isWriting = target.matches("textarea, input[type=search]");
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.key === "/" && !isWriting) {
    turnTo("photos");
    byId("query").focus();
    byId("query").select();
  } else if (event.key === "Escape" && view === "captions") {
    turnTo("photos");
    byId("query").focus();
  } else if (event.key === "Escape" && byId("query").value) {
    byId("query").value = "";
    byId("query").focus();
    schedule(0);
  } else if (target.id === "query" && (event.key === "ArrowDown" || event.key === "Enter")) {
    if (event.key === "Enter" && (running || byId("problem").hidden === false)) schedule(0);
    else document.querySelector("button.hit")?.focus();
  } else if (target.matches("button.hit") && event.key.startsWith("Arrow")) {
    const next = neighbour(target, event.key);
    if (next) next.focus();
    else if (event.key === "ArrowUp") byId("query").focus();
  } else if (target.matches("[role=tab]") && /^Arrow(Left|Right)$/.test(event.key)) {
    turnTo(view === "photos" ? "captions" : "photos");
    byId(`tab-${view}`).focus();
  } else {
    return;
  }
  event.preventDefault();
}

function start() {
  sections.forEach(addSlider);
  for (const example of state.examples) {
    const button = element("button", { type: "button", textContent: example });
    button.addEventListener("click", () => {
      byId("query").value = example;
      schedule(0);
    });
    byId("examples").append(button);
  }
  byId("query").addEventListener("input", () => schedule());
  byId("texts").addEventListener("input", () => schedule());
  byId("tab-photos").addEventListener("click", () => turnTo("photos"));
  byId("tab-captions").addEventListener("click", () => turnTo("captions"));
  byId("file").addEventListener("change", (event) => {
    if (event.target.files.length) take(event.target.files[0]);
    event.target.value = "";
  });
  document.addEventListener("keydown", onKey);
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      if (kind === "dragover" && view === "photos" && event.dataTransfer.types.includes("Files")) turnTo("captions");
      byId("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
    });
  }
  showChosen();
  update();
}

start();
