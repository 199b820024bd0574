// A log that grows at its end and stays there, unless its reader has scrolled up.

import { oncePerFrame } from "./dom.js";

const MAX_LINES = 2000;

export class Log {
  #pane;
  #waiting = [];
  #flush = oncePerFrame(() => this.#append());

  constructor(pane) {
    this.#pane = pane;
  }

  clear() {
    this.#waiting = [];
    this.#pane.replaceChildren();
  }

  add(line) {
    this.#waiting.push(line);
    this.#flush();
  }

  #append() {
    const pane = this.#pane;
    const atEnd = pane.scrollHeight - pane.scrollTop - pane.clientHeight < 30;
    pane.append(...this.#waiting.splice(0).map((line) => `${line}\n`));
    while (pane.childNodes.length > MAX_LINES) pane.firstChild.remove();
    if (atEnd) pane.scrollTop = pane.scrollHeight;
  }
}
