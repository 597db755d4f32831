// Asks the run how it goes, twice a second, and shows it. All words from the run are set as text, never as HTML.
import { ScoreChart } from "./chart.js";

const STATE_EVERY_MS = 500;
const FRAME_EVERY_MS = 200;
const HISTORY_FRAMES = 1000;
// A threshold farther from the bundle's than this factor is asked about.
const USUAL_FACTOR = 2;
const TOKEN_KEY = "pcrun-token";

// The read of a live source waits for the next frame.
const NAMES = { age: "age at verdict", decode: "read, decode" };

const find = (id) => document.getElementById(id);
// `state` is of the chosen line, null until it has come; `frame` is what is shown of it.
const page = { line: 0, state: null, frame: null, trial: null, login: null };

// ---- talking to the run

if (location.hash.startsWith("#token=")) {
  sessionStorage.setItem(TOKEN_KEY, decodeURIComponent(location.hash.slice("#token=".length)));
  history.replaceState(null, "", location.pathname);
}

async function ask(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN_KEY);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers, signal: AbortSignal.timeout(10000) });
  if (response.ok) return response;
  // Read before the dialog, which a person may leave open for longer than a request may take.
  const told = await response.json().catch(() => ({}));
  if (response.status === 401) {
    sessionStorage.removeItem(TOKEN_KEY);
    if (await login(Boolean(token))) return ask(path, options);
  }
  throw new Error(told.error || `the run answers ${response.status}`);
}

/** Ask a person for the token; whether there is a new one. Several callers share one dialog. */
function login(wrong) {
  page.login ??= new Promise((resolve) => {
    const dialog = find("login");
    find("login-wrong").hidden = !wrong;
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "ok" && find("token").value.trim();
      if (given) sessionStorage.setItem(TOKEN_KEY, given);
      find("token").value = "";
      page.login = null;
      resolve(Boolean(given));
    }, { once: true });
    dialog.returnValue = "";
    dialog.showModal();
  });
  return page.login;
}

async function imageUrl(path) {
  return URL.createObjectURL(await (await ask(path)).blob());
}

function every(milliseconds, work) {
  const round = async () => {
    if (!document.hidden) await work();
    setTimeout(round, milliseconds);
  };
  round();
}

// ---- words and numbers

const number = (value) => (Math.abs(value) >= 1e30 ? "none" : Number(value.toPrecision(5)).toString());
const clock = (time) => new Date(time).toLocaleTimeString();

function fill(list, items, makeItem) {
  list.replaceChildren(...items.map(makeItem));
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Fill a list anew only when it differs: what a person is about to click must stay where it is. */
function fillWhenChanged(list, items, makeItem, signature = JSON.stringify(items)) {
  if (list.signature !== signature) fill(list, items, makeItem);
  list.signature = signature;
}

// ---- the parts of the page

function showLines(lines) {
  const nav = find("lines");
  nav.hidden = lines.length < 2;
  const names = lines.map((line) => line.name);
  fillWhenChanged(nav, names, (name, index) => {
    const button = element("button", { type: "button", textContent: name, title: name });
    button.addEventListener("click", () => chooseLine(index));
    return button;
  });
  lines.forEach((line, index) => {
    const button = nav.children[index];
    button.setAttribute("aria-pressed", String(index === page.line));
    button.dataset.verdict = line.verdict ?? "";
    button.dataset.state = line.state;
  });
}

function chooseLine(index) {
  Object.assign(page, { line: index, state: null, frame: null, trial: null });
  showNoFrame();
  find("trial-value").value = "";
  find("trial-outcome").textContent = "";
  refresh();
}

// A verdict holds for its frame alone: where no frames come any more, the last one says nothing.
function isCurrent(line) {
  return !["lost", "failed", "stopped"].includes(line.state);
}

function showNoVerdict(why) {
  find("verdict").dataset.verdict = "none";
  find("verdict-word").textContent = "no current verdict";
  find("verdict-score").textContent = why;
  find("alarm").hidden = true;
  document.querySelector("figure").classList.add("stale");
  document.title = "no current verdict";
}

function showNoFrame() {
  find("verdict").dataset.verdict = "none";
  find("verdict-word").textContent = "no frame yet";
  find("verdict-score").textContent = "";
  find("alarm").hidden = true;
  find("frame-name").textContent = "";
  find("frame").hidden = true;
  find("no-frame").hidden = false;
  find("no-frame").textContent = "no frame yet";
}

/** The words of the frame whose picture is shown. */
function showVerdict(record) {
  document.querySelector("figure").classList.remove("stale");
  find("verdict").dataset.verdict = record.verdict;
  find("verdict-word").textContent = record.verdict;
  const failed = record.verdict === "error";
  find("verdict-score").textContent = failed ? record.error : `${number(record.score)} / ${number(record.threshold)}`;
  find("alarm").hidden = !record.alarm;
  const name = `${record.source} · frame ${record.frame}`;
  find("frame-name").textContent = record.time ? `${name} · ${clock(record.time)}` : name;
}

function showBanner() {
  const line = page.state?.line;
  if (!line || !page.frame) {
    document.title = `waiting · ${line?.name ?? "PatchCore Edge"}`;
  } else if (isCurrent(line)) {
    showVerdict(page.frame.record);
    document.title = `${page.frame.record.verdict} · ${line.name}`;
  } else {
    const { time, frame } = line.record;
    showNoVerdict(`${line.state}, last frame ${time ? clock(time) : frame}`);
  }
}

function changed(line) {
  return line.bundle_threshold !== null && number(line.bundle_threshold) !== number(line.threshold);
}

function showFacts(line) {
  const counts = line.counts;
  const state = line.reason ? `${line.state}: ${line.reason}` : line.state;
  const facts = [
    [line.live ? "camera" : "source", state, line.state === "lost" || line.state === "failed", Boolean(line.reason)],
    ["frames per second", line.fps.toFixed(1)],
    ["scored", counts.normal + counts.anomalous],
    ["anomalous", counts.anomalous],
    ["without verdict", counts.error, counts.error > 0],
    ["dropped", line.dropped],
    ["threshold", number(line.threshold) + (changed(line) ? `, bundle's ${number(line.bundle_threshold)}` : "")],
    ["pixel threshold", number(line.pixel_threshold)],
  ];
  fill(find("facts"), facts, ([name, value, bad, wide]) =>
    element("div", { className: wide ? "wide" : "" },
      element("dt", { textContent: name }),
      element("dd", { textContent: value, className: bad ? "bad" : "" })));
}

function showLatency(line) {
  fill(find("stages"), Object.entries(line.latency_ms), ([stage, times]) =>
    element("tr", { className: stage === "total" ? "total" : "" },
      element("th", { scope: "row", textContent: NAMES[stage] ?? stage }),
      ...["p50", "p90", "p99"].map((p) => element("td", { textContent: times[p].toFixed(times[p] < 100 ? 1 : 0) }))));
  find("runs-on").textContent = line.runs_on;
}

function showEvents(line) {
  find("no-events").hidden = line.events.length > 0;
  const known = new Set(["event", "source", "time"]);
  fillWhenChanged(find("events"), line.events, (event) => {
    const facts = Object.entries(event).filter(([key]) => !known.has(key)).map(([key, value]) =>
      `${key.replaceAll("_", " ")} ${typeof value === "number" ? number(value) : value}`);
    const words = [event.event.replaceAll("_", " "), ...(event.source === line.name ? [] : [event.source]), ...facts];
    return element("li", {}, element("time", { dateTime: event.time, textContent: clock(event.time) }), words.join(" · "));
  });
}

// Pictures of the gallery by line and number, so that each is fetched once.
const pictures = new Map();

function showGallery(line) {
  find("no-anomalies").hidden = line.anomalies.length > 0;
  const wanted = new Set(line.anomalies.map((anomaly) => `${page.line}/${anomaly.number}`));
  for (const [key, url] of pictures) {
    if (!wanted.has(key)) {
      if (url) URL.revokeObjectURL(url);
      pictures.delete(key);
    }
  }
  for (const anomaly of line.anomalies) {
    const key = `${page.line}/${anomaly.number}`;
    if (!anomaly.painted || pictures.has(key)) continue;
    pictures.set(key, null);
    imageUrl(`/api/anomaly?line=${page.line}&number=${anomaly.number}`)
      .then((url) => pictures.set(key, url), () => pictures.delete(key));
  }
  const shown = line.anomalies.map((anomaly) => [page.line, anomaly.number, pictures.get(`${page.line}/${anomaly.number}`)]);
  fillWhenChanged(find("gallery"), line.anomalies, (anomaly) => {
    const key = `${page.line}/${anomaly.number}`;
    const caption = `${number(anomaly.score)} · frame ${anomaly.frame}` + (anomaly.time ? ` · ${clock(anomaly.time)}` : "");
    const url = pictures.get(key);
    const picture = url ? element("img", { src: url, alt: `anomalous frame ${anomaly.frame}` })
      : element("div", { className: "unpainted" });
    const button = element("button", { type: "button", title: anomaly.source }, picture,
      element("span", { textContent: caption }));
    button.addEventListener("click", () => url && enlarge(url, `${anomaly.source} · ${caption}`));
    return element("li", {}, button);
  }, JSON.stringify(shown));
}

function enlarge(url, caption) {
  find("large-picture").src = url;
  find("large-caption").textContent = caption;
  find("large").showModal();
}

/** Fetch the newest frame and show it with the verdict that came with it. */
async function showFrame() {
  const line = page.line;
  const heatmap = find("heatmap").checked ? 1 : 0;
  const known = page.frame?.heatmap === heatmap ? `&known=${page.frame.record.number}` : "";
  try {
    const response = await ask(`/api/frame?line=${line}&heatmap=${heatmap}${known}`);
    const told = response.headers.get("X-Frame");
    if (!told) return; // there is none, or it is shown already
    const url = response.status === 204 ? null : URL.createObjectURL(await response.blob());
    if (line !== page.line) return; // another one was chosen meanwhile
    await showPicture(url);
    page.frame = { heatmap, record: JSON.parse(told) };
    showBanner();
  } catch {
    // The state says that the run cannot be reached.
  }
}

async function showPicture(url) {
  const image = find("frame");
  find("no-frame").hidden = Boolean(url);
  image.hidden = !url;
  if (!url) {
    find("no-frame").textContent = "this frame could not be read";
    return;
  }
  const before = image.src;
  image.src = url;
  await image.decode().catch(() => undefined);
  if (before) URL.revokeObjectURL(before);
}

// ---- trying a threshold

const chart = new ScoreChart(find("chart"), (value) => {
  find("trial-value").value = number(value);
  tryThreshold();
});

/** What was typed as a number, with a point or a comma; null for anything else. */
function typed() {
  const text = find("trial-value").value.trim().replace(",", ".");
  return /^\d*\.?\d+(e[+-]?\d+)?$/i.test(text) && Number(text) > 0 ? Number(text) : null;
}

function tryThreshold() {
  page.trial = typed();
  const text = find("trial-value").value.trim();
  find("trial-outcome").textContent = text && page.trial === null ? `${text} is no threshold: a number above 0 is.` : "";
  showTrial();
}

function showTrial() {
  const line = page.state?.line;
  if (!line) return;
  chart.draw(line.history, line.threshold, page.trial, HISTORY_FRAMES);
  find("trial-apply").disabled = page.trial === null || !line.history.length;
  find("trial-value").placeholder = number(line.threshold);
  const back = find("trial-bundle");
  back.hidden = !changed(line);
  if (!back.hidden) back.textContent = `Bundle's ${number(line.bundle_threshold)}`;
  if (page.trial === null) return;
  const scores = line.history.map(([score]) => score).filter((score) => score !== null);
  const was = line.history.filter(([, verdict]) => verdict === "anomalous").length;
  const would = scores.filter((score) => score > page.trial).length;
  find("trial-outcome").textContent =
    `Of the last ${scores.length} frames ${was} were anomalous; with ${number(page.trial)} it would have been ${would}.`;
}

async function applyTrial(event) {
  event.preventDefault();
  if (page.trial === null) return;
  const value = page.trial;
  const own = page.state.line.bundle_threshold;
  const far = own !== null && (value > own * USUAL_FACTOR || value < own / USUAL_FACTOR);
  if (far && !confirm(`${number(value)} is far from the bundle's ${number(own)}. Apply it all the same?`)) return;
  let outcome;
  try {
    await ask(`/api/threshold?line=${page.line}`, { method: "POST", body: JSON.stringify({ threshold: value }) });
    page.trial = null;
    find("trial-value").value = "";
    outcome = `Applied: ${number(value)}.`;
  } catch (error) {
    outcome = `Not applied: ${error.message}`;
  }
  await refresh();
  find("trial-outcome").textContent = outcome;
}

find("trial-value").addEventListener("input", tryThreshold);
find("trial").addEventListener("submit", applyTrial);
find("trial-reset").addEventListener("click", () => {
  find("trial-value").value = "";
  find("trial-outcome").textContent = "";
  tryThreshold();
});
find("trial-bundle").addEventListener("click", () => {
  if (page.state) find("trial-value").value = number(page.state.line.bundle_threshold);
  tryThreshold();
});
find("heatmap").addEventListener("change", showFrame);

// ---- going round

async function refresh() {
  const link = find("link");
  try {
    const line = page.line;
    const state = await (await ask(`/api/state?line=${line}`)).json();
    if (line !== page.line) return; // another one was chosen meanwhile
    page.state = state;
    link.textContent = `live · ${state.version}`;
    link.className = "chip good";
    find("bundle").textContent = state.line.bundle;
    showLines(state.lines);
    showBanner();
    showFacts(state.line);
    showLatency(state.line);
    showEvents(state.line);
    showGallery(state.line);
    showTrial();
  } catch (error) {
    link.textContent = error.name === "TypeError" ? "the run cannot be reached" : error.message;
    link.className = "chip bad";
    if (page.frame) showNoVerdict("the run cannot be reached");
  }
}

every(STATE_EVERY_MS, refresh);
every(FRAME_EVERY_MS, showFrame);
