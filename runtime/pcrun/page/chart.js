// The scores of the last frames, with the threshold in force and the one that is tried.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 46, right: 10, top: 12, bottom: 20 };
const TICKS = 4;

/** Steps of 1, 2 or 5 times a power of ten, about `count` of them between two values. */
function tickValues(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const values = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) values.push(value);
  return { values, digits: Math.max(0, -Math.floor(Math.log10(step))) };
}

function make(parent, name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

export class ScoreChart {
  /** `onTry` gets a threshold that was dragged to. */
  constructor(box, onTry) {
    this.box = box;
    this.scale = null;
    let dragging = false;
    const move = (event) => {
      if (!dragging || !this.scale) return;
      const y = event.clientY - box.getBoundingClientRect().top;
      onTry(this.scale.valueAt(y));
    };
    box.addEventListener("pointerdown", (event) => {
      dragging = true;
      box.setPointerCapture(event.pointerId);
      move(event);
    });
    box.addEventListener("pointermove", move);
    for (const end of ["pointerup", "pointercancel"]) box.addEventListener(end, () => (dragging = false));
    this.isDragged = () => dragging;
  }

  /** Draw; `history` holds [score or null, verdict] per frame, oldest first. */
  draw(history, threshold, trial, capacity) {
    const width = this.box.clientWidth, height = this.box.clientHeight;
    const scored = history.map(([score]) => score).filter((score) => score !== null);
    const limits = [threshold, trial].filter((value) => value !== null && Math.abs(value) < 1e30);
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `image scores of the last ${history.length} frames`);
    const values = [...scored, ...limits];
    if (values.length && !this.isDragged()) this.fit(values, height);
    else if (!values.length) this.scale = null;
    if (this.scale) this.drawInto(svg, { history, threshold, trial, capacity, width, height });
    this.box.replaceChildren(svg);
  }

  fit(values, height) {
    let low = Math.min(...values), high = Math.max(...values);
    const room = (high - low || Math.abs(high) || 1) * 0.08;
    low -= room;
    high += room;
    const top = MARGIN.top, bottom = height - MARGIN.bottom;
    this.scale = {
      low, high,
      y: (value) => bottom - ((value - low) / (high - low)) * (bottom - top),
      valueAt: (y) => low + ((bottom - Math.min(Math.max(y, top), bottom)) / (bottom - top)) * (high - low),
    };
  }

  drawInto(svg, { history, threshold, trial, capacity, width, height }) {
    const { low, high, y } = this.scale;
    const right = width - MARGIN.right;
    const frames = Math.min(capacity, Math.max(history.length, 50));
    const x = (index) => right - ((history.length - 1 - index) / (frames - 1)) * (right - MARGIN.left);
    const ticks = tickValues(low, high, TICKS);
    for (const value of ticks.values) {
      make(svg, "line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) });
      const at = { x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" };
      make(svg, "text", at, value.toFixed(ticks.digits));
    }
    make(svg, "text", { x: MARGIN.left, y: height - 4 }, `${frames} frames ago`);
    make(svg, "text", { x: right, y: height - 4, "text-anchor": "end" }, "now");

    let path = "";
    let pen = "M";
    history.forEach(([score], index) => {
      if (score === null) pen = "M";
      else {
        path += `${pen}${x(index).toFixed(1)} ${y(score).toFixed(1)}`;
        pen = "L";
      }
    });
    make(svg, "path", { class: "scores", d: path });
    history.forEach(([score, verdict], index) => {
      if (verdict === "anomalous") {
        make(svg, "circle", { class: "anomalous", cx: x(index).toFixed(1), cy: y(score).toFixed(1), r: 2.2 });
      } else if (score === null) {
        make(svg, "circle", { class: "unscored", cx: x(index).toFixed(1), cy: height - MARGIN.bottom, r: 2.2 });
      }
    });
    const named = (value, kind, textKind, label) => {
      if (value === null || value < low || value > high) return;
      make(svg, "line", { class: kind, x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) });
      make(svg, "text", { class: textKind, x: MARGIN.left + 6, y: y(value) - 4 }, label);
    };
    named(threshold, "threshold", "named", "threshold");
    named(trial, "trial", "tried", "tried");
  }
}
