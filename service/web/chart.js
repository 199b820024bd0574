// The loss by step: every step as a line, evaluations as points.

import { oncePerFrame } from "./dom.js";

const MARGIN = { top: 12, right: 12, bottom: 26, left: 44 };
const HEIGHT = 260;
/** More points than this cannot be told apart; neighbours are averaged. */
const MAX_POINTS = 600;

export class LossChart {
  #svg;
  #readout;
  #steps = [];
  #evaluations = [];
  #scale = null;
  #redraw = oncePerFrame(() => this.#draw());

  constructor(svg, readout) {
    this.#svg = svg;
    this.#readout = readout;
    new ResizeObserver(this.#redraw).observe(svg);
    svg.addEventListener("pointermove", (event) => this.#pointAt(event.offsetX));
    svg.addEventListener("pointerleave", () => { readout.textContent = ""; });
  }

  clear() {
    this.#steps = [];
    this.#evaluations = [];
    this.#redraw();
  }

  addStep(step, loss) {
    if (loss != null) this.#steps.push({ step, loss });
    this.#redraw();
  }

  addEvaluation(step, train, val) {
    this.#evaluations.push({ step, train, val });
    this.#redraw();
  }

  /** A new attempt goes on from `step`; what the last one drew beyond it did not happen. */
  cutAfter(step) {
    this.#steps = this.#steps.filter((point) => point.step <= step);
    this.#evaluations = this.#evaluations.filter((point) => point.step <= step);
    this.#redraw();
  }

  #draw() {
    const width = this.#svg.clientWidth;
    if (!width) return;
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const steps = thinned(this.#steps);
    const losses = [...steps.map((point) => point.loss), ...this.#evaluations.flatMap(({ train, val }) => [train, val])]
      .filter((loss) => loss != null);
    if (!losses.length) {
      this.#svg.replaceChildren(text(width / 2, HEIGHT / 2, "No steps yet", "middle"));
      return;
    }
    this.#scale = scaleFor([...steps, ...this.#evaluations].map((point) => point.step), losses, width);
    this.#svg.replaceChildren(
      ...axes(this.#scale, width),
      line("train", steps.map((point) => [point.step, point.loss]), this.#scale),
      ...this.#evaluated("train-eval", "train"),
      ...this.#evaluated("val", "val"),
    );
    this.#describe();
  }

  #evaluated(className, part) {
    const points = this.#evaluations.filter((point) => point[part] != null).map((point) => [point.step, point[part]]);
    return [line(className, points, this.#scale), ...points.map((point) => dot(className, point, this.#scale))];
  }

  #describe() {
    const last = this.#steps.at(-1) ?? { step: this.#evaluations.at(-1).step, loss: this.#evaluations.at(-1).train };
    this.#svg.setAttribute("aria-label", `Loss by step; at step ${last.step} it is ${last.loss?.toFixed(4)}`);
  }

  #pointAt(x) {
    if (!this.#scale || !this.#steps.length) return;
    const step = this.#scale.stepAt(x);
    const nearest = this.#steps.reduce((best, point) =>
      Math.abs(point.step - step) < Math.abs(best.step - step) ? point : best);
    const evaluation = this.#evaluations.findLast((point) => point.step <= nearest.step);
    const validation = evaluation?.val == null ? "" : `, validation ${evaluation.val.toFixed(4)}`;
    this.#readout.textContent = `step ${nearest.step}: ${nearest.loss.toFixed(4)}${validation}`;
  }
}

function thinned(points) {
  const stride = Math.ceil(points.length / MAX_POINTS);
  if (stride <= 1) return points;
  const kept = [];
  for (let at = 0; at < points.length; at += stride) {
    const bucket = points.slice(at, at + stride);
    const mean = bucket.reduce((sum, point) => sum + point.loss, 0) / bucket.length;
    kept.push({ step: bucket.at(-1).step, loss: mean });
  }
  return kept;
}

function scaleFor(steps, losses, width) {
  const [left, right] = [Math.min(...steps), Math.max(...steps)];
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const padding = (high - low || 1) * 0.05;
  const bottom = Math.max(0, low - padding);
  const top = high + padding;
  const across = (width - MARGIN.left - MARGIN.right) / (right - left || 1);
  const down = (HEIGHT - MARGIN.top - MARGIN.bottom) / (top - bottom);
  return {
    left, right, bottom, top,
    x: (step) => MARGIN.left + (step - left) * across,
    y: (loss) => HEIGHT - MARGIN.bottom - (loss - bottom) * down,
    stepAt: (x) => left + (x - MARGIN.left) / across,
  };
}

function axes(scale, width) {
  const horizontal = ticks(scale.bottom, scale.top, 5).flatMap((loss) => [
    shape("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: scale.y(loss), y2: scale.y(loss) }),
    text(MARGIN.left - 6, scale.y(loss) + 4, String(loss), "end"),
  ]);
  const vertical = ticks(scale.left, scale.right, Math.max(2, Math.floor(width / 110)))
    .filter(Number.isInteger)
    .map((step) => text(scale.x(step), HEIGHT - 8, String(step), "middle"));
  return [...horizontal, ...vertical];
}

/** Round numbers from `low` to `high`, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low || 1) / count;
  const magnitude = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * magnitude).find((candidate) => candidate >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high; at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}

function line(className, points, scale) {
  const path = points.map(([step, loss]) => `${scale.x(step).toFixed(1)},${scale.y(loss).toFixed(1)}`).join(" ");
  return shape("polyline", { class: className, points: path });
}

function dot(className, [step, loss], scale) {
  return shape("circle", { class: className, cx: scale.x(step), cy: scale.y(loss), r: 3 });
}

function text(x, y, content, anchor) {
  const made = shape("text", { x, y, "text-anchor": anchor });
  made.textContent = content;
  return made;
}

function shape(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
