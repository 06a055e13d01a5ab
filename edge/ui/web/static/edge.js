// Asks for the state once a second and for the picture as fast as it comes, at most five times a second. A hidden tab
// asks for nothing. Everything out of the run is set as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const KEPT_S = 600;
let history_ = [], ended = false, about = null, width = 0;
const shown = new Map(), single = { image: null, seq: "", address: null };

const digits = (value) => value === null || value === undefined ? "–" : value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
const words = (label) => label.replaceAll("_", " ");

function lasted(seconds) {
  const all = Math.floor(seconds), h = Math.floor(all / 3600), m = Math.floor(all / 60) % 60, s = all % 60;
  return `${h}:${String(m).padStart(2, "0")}:${String(s).padStart(2, "0")}`;
}

function text(parent, name, content, kind) {
  const item = document.createElement(name);
  item.textContent = content;
  if (kind) item.className = kind;
  parent.append(item);
  return item;
}

function card(title, value, note, hot) {
  const item = document.createElement("div");
  if (hot) item.className = "hot";
  text(item, "dt", title);
  const shown = text(item, "dd", value);
  text(shown, "small", note);
  return item;
}

function cards(state) {
  const found = [
    card("rate", state.rate_per_s === null ? "–" : `${state.rate_per_s.toFixed(1)} /s`,
      `${state.pictures.toLocaleString("en")}${state.total === null ? "" : ` of ${state.total.toLocaleString("en")}`} images`),
  ];
  const all = state.latency;
  if (all) found.push(card("latency", `${digits(all.p50_ms)} ms`, all.p99_ms === null ? `max ${digits(all.max_ms)}, since the start` : `p99 ${digits(all.p99_ms)}, since the start`));
  if (state.power_mw !== null) found.push(card("power", `${(state.power_mw / 1000).toFixed(2)} W`, about ? about.power : ""));
  const hottest = Object.entries(state.temps_c).sort((a, b) => b[1] - a[1])[0];
  if (hottest) found.push(card("hottest", `${hottest[1].toFixed(0)} °C`, hottest[0], state.throttling.length > 0));
  const loads = Object.entries(state.loads_percent);
  const load = loads.find(([name]) => name.startsWith("gpu")) ?? loads[0];
  if (load) found.push(card("load", `${load[1].toFixed(0)} %`, load[0]));
  if (state.dropped !== null) found.push(card("dropped", state.dropped.toLocaleString("en"), "frames replaced by newer ones"));
  if (state.skipped) found.push(card("skipped", state.skipped.toLocaleString("en"), "could not be used"));
  if (state.gaps) found.push(card("gaps", state.gaps.toLocaleString("en"), "times without frames", state.gap !== null));
  $("cards").replaceChildren(...found);
}

function guesses(state) {
  $("guesses").replaceChildren(...state.guesses.map((guess) => {
    const item = document.createElement("li");
    text(item, "span", words(guess.label));
    const bar = document.createElement("meter");
    bar.value = guess.confidence;
    bar.setAttribute("aria-label", words(guess.label));
    item.append(bar);
    text(item, "span", `${(guess.confidence * 100).toFixed(1)} %`);
    return item;
  }));
  $("name").textContent = state.name ?? "";
  $("age").textContent = state.age_ms === null ? "" : `${digits(state.age_ms)} ms old`;
}

/** A picture, a label and the figures of each camera of several. */
function cameras(state) {
  const several = state.cameras.length > 0;
  $("cameras").hidden = !several;
  $("one").hidden = several;
  $("guesses").hidden = several;
  for (const camera of state.cameras) {
    let box = shown.get(camera.name);
    if (!box) {
      const figure = document.createElement("figure"), frame = document.createElement("div"), image = document.createElement("img");
      frame.className = "frame";
      image.alt = `The newest labelled frame of ${camera.name}`;
      image.hidden = true;
      frame.append(image);
      figure.append(frame);
      const caption = text(figure, "figcaption", "");
      box = { image, title: text(caption, "b", camera.name), label: text(caption, "span", ""), note: text(caption, "small", ""), seq: "", address: null };
      shown.set(camera.name, box);
      $("cameras").append(figure);
    }
    box.label.textContent = camera.gap ? `no frames: ${camera.gap.reason}` : camera.label === null ? "no frame yet" : `${words(camera.label)} ${(camera.confidence * 100).toFixed(0)} %`;
    const notes = [];
    if (camera.rate_per_s !== null) notes.push(`${camera.rate_per_s.toFixed(1)} /s`);
    if (camera.age_ms !== null) notes.push(`${digits(camera.age_ms)} ms old`);
    if (camera.dropped) notes.push(`${camera.dropped} dropped`);
    if (camera.gaps) notes.push(`${camera.gaps} gaps`);
    box.note.textContent = notes.join(", ");
  }
  $("decision").hidden = several || !state.decision;
  if (state.decision) $("decision").textContent = `Decided: ${words(state.decision.label)}, ${(state.decision.confidence * 100).toFixed(0)} %`;
  $("news").hidden = state.changes.length === 0;
  $("changes").replaceChildren(...state.changes.toReversed().map((change) => {
    const item = document.createElement("li");
    text(item, "time", lasted(change.t_s));
    if (change.camera) text(item, "b", change.camera);
    text(item, "span", `${words(change.label)} ${(change.confidence * 100).toFixed(0)} %`);
    return item;
  }));
  $("sent").hidden = state.notify.length === 0;
  $("notify").replaceChildren(...state.notify.map((target) => {
    const item = document.createElement("li");
    item.textContent = `${target.target}: ${target.sent} sent, ${target.failed} failed, ${target.dropped} dropped, ${target.waiting} waiting${target.last_error ? ` (${target.last_error})` : ""}`;
    return item;
  }));
}

function alert_(state) {
  const lines = [];
  if (state.gap) lines.push(`${state.gap.camera ? `${state.gap.camera}: no` : "No"} frames: ${state.gap.reason}; being reopened.${state.gap.hint ? ` Try: ${state.gap.hint}.` : ""}`);
  if (state.throttling.length) lines.push(`Slowed down for heat or current: ${state.throttling.join(", ")}`);
  $("alert").hidden = lines.length === 0;
  $("alert").className = state.gap ? "warning bad" : "warning";
  $("alert").textContent = lines.join(" ");
}

function draw() {
  chart($("latency"), history_, [{ value: (t) => t.p50, area: (t) => t.max, colour: 0 }], true);
  const watts = history_.some((t) => t.w !== null);
  $("watts").hidden = !watts;
  if (watts) chart($("power"), history_, [{ value: (t) => t.w, colour: 3 }], true);
  const sensors = [...new Set(history_.flatMap((t) => Object.keys(t.c)))].slice(0, 8);
  $("heat").hidden = sensors.length === 0;
  if (sensors.length) chart($("temps"), history_, sensors.map((name, i) => ({ value: (t) => t.c[name] ?? null, colour: i })), false);
  $("sensors").replaceChildren();
  sensors.forEach((name, i) => { text($("sensors"), "i", "", `c${i}`); $("sensors").append(name); });
  const drops = history_.some((t) => t.d > 0);
  $("lost").hidden = !drops;
  if (drops) chart($("drops"), history_, [{ value: (t) => t.d, colour: 1 }], true);
}

function say(words_, kind) {
  $("state").textContent = words_;
  $("status").className = kind;
}

async function get(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(5000) });
  if (answer.status === 401) location.reload();
  if (!answer.ok) throw new Error(answer.statusText);
  return answer;
}

async function look() {
  try {
    if (!about) {
      about = await (await get("/about")).json();
      document.title = `edge: ${about.headline}`;
      $("headline").textContent = about.headline;
      $("scope").textContent = about.power;
      $("facts").replaceChildren();
      for (const [name, value] of Object.entries(about.facts)) { text($("facts"), "dt", name); text($("facts"), "dd", value); }
      if (!/^\d|^[a-z_]+, by/.test(about.power)) { text($("facts"), "dt", "power"); text($("facts"), "dd", about.power); }
    }
    const last = history_.length ? history_[history_.length - 1].t : -1;
    const state = await (await get(`/state?since=${last}`)).json();
    // The same server with a new run: its clock began again.
    if (state.t_s < last - 2) history_ = [];
    history_ = history_.concat(state.history).filter((tick) => tick.t > state.t_s - KEPT_S);
    cards(state); guesses(state); cameras(state); alert_(state); draw();
    if (state.ended) {
      ended = true;
      const joules = state.ended.joules_per_picture;
      say(`${state.ended.status} after ${lasted(state.ended.measured_s)}${joules ? `, ${joules >= 1 ? `${digits(joules)} J` : `${digits(joules * 1000)} mJ`} per image` : ""}`, "off");
    } else say(`running for ${lasted(state.t_s)}`, state.gap ? "off" : "on");
  } catch {
    if (!ended) say("no answer: the run has ended, or the network is gone", "off");
  }
}

async function fetchPicture(box, which) {
  const answer = await get(`/frame.jpg?after=${box.seq}${which}`);
  if (answer.status !== 200) return false;
  box.seq = answer.headers.get("x-edge-seq");
  const before = box.address;
  box.address = URL.createObjectURL(await answer.blob());
  box.image.src = box.address;
  box.image.hidden = false;
  if (before) URL.revokeObjectURL(before);
  return true;
}

async function picture() {
  try {
    for (const [name, box] of shown) await fetchPicture(box, `&camera=${encodeURIComponent(name)}`);
    if (shown.size) return;
    single.image = $("picture");
    if (await fetchPicture(single, "")) $("nothing").hidden = true;
  } catch { /* look() says it */ }
}

/** Do again after the answer has come, never before: a slow line gets fewer pictures, not a queue of them. */
async function every(milliseconds, work) {
  for (;;) {
    const began = performance.now();
    if (!document.hidden) await work();
    await new Promise((done) => setTimeout(done, Math.max(milliseconds - (performance.now() - began), 30)));
    if (ended) return;
  }
}

addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
every(1000, look);
every(200, picture);
