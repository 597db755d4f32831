// The slider: another threshold, and what the verdicts would have been.
"use strict";
(() => {
  const scores = JSON.parse(document.getElementById("data").textContent);
  const charts = [...document.querySelectorAll("#scores .chart svg")].filter((svg) => svg.dataset.low);
  const slider = document.getElementById("threshold");
  if (!charts.length) return;
  const low = Number(charts[0].dataset.low), high = Number(charts[0].dataset.high);
  const steps = Number(slider.max);

  // Sorted, so that a binary search counts those above.
  function above(sorted, threshold) {
    let first = 0, last = sorted.length;
    while (first < last) {
      const middle = (first + last) >> 1;
      if (sorted[middle] > threshold) last = middle; else first = middle + 1;
    }
    return sorted.length - first;
  }

  function write(id, value) {
    const cell = document.getElementById(id);
    if (cell) cell.textContent = typeof value === "number" ? value.toLocaleString("en") : value;
  }

  function moveLine(threshold) {
    for (const svg of charts) {
      let line = svg.querySelector(".moving");
      if (!line) {
        line = document.createElementNS("http://www.w3.org/2000/svg", "line");
        line.setAttribute("class", "moving");
        line.setAttribute("y1", svg.dataset.top);
        line.setAttribute("y2", svg.dataset.floor);
        svg.append(line);
      }
      const share = (threshold - low) / (high - low);
      const x = Number(svg.dataset.left) + share * (svg.dataset.right - svg.dataset.left);
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    }
  }

  const initial = new Map([...document.querySelectorAll("#scores [id]")].map((cell) => [cell.id, cell.textContent]));

  slider.addEventListener("input", () => {
    const threshold = low + (slider.value / steps) * (high - low);
    write("threshold-value", threshold.toPrecision(4));
    moveLine(threshold);
    const falsePositives = above(scores.normal, threshold), truePositives = above(scores.defective, threshold);
    write("false-positives", falsePositives);
    write("true-negatives", scores.normal.length - falsePositives);
    write("true-positives", truePositives);
    write("false-negatives", scores.defective.length - truePositives);
    write("flagged", above(scores.unlabelled, threshold));
    if (scores.normal.length) write("false-rate", (falsePositives / scores.normal.length).toFixed(4));
    if (scores.defective.length) write("recall", (truePositives / scores.defective.length).toFixed(4));
  });

  function reset() {
    for (const [id, text] of initial) {
      const cell = document.getElementById(id);
      if (cell && !cell.children.length && cell.tagName !== "INPUT") cell.textContent = text;
    }
    document.querySelectorAll("#scores .moving").forEach((line) => line.remove());
    const own = Number(slider.dataset.own);
    slider.value = String(Math.round(((own - low) / (high - low)) * steps));
    write("threshold-value", own.toPrecision(4));
  }

  document.getElementById("threshold-reset").addEventListener("click", reset);
  document.querySelector(".slider").hidden = false;
  reset();
})();
