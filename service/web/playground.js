// Asking a checkpoint, with the answer appearing as it is written.

import { getJson, postStream, Problem } from "./api.js";
import { byId, element } from "./dom.js";

export class Playground {
  #select = byId("playground-checkpoint");
  #answer = byId("playground-answer");
  #button = byId("playground-go");
  #asking = null;
  /** Until a person chooses, the newest one is offered. */
  #hasChosen = false;

  constructor(report) {
    this.report = report;
    this.#select.addEventListener("change", () => { this.#hasChosen = true; });
    byId("playground").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#asking) this.#asking.abort();
      else this.#ask();
    });
  }

  /** Offer the newest checkpoints; one that was chosen stays chosen. */
  async refresh() {
    const page = await getJson("/checkpoints?limit=50").catch(this.report);
    if (!page) return;
    const chosen = this.#select.value;
    this.#select.replaceChildren(...page.data.map((item) => element("option", { value: item.id }, item.name)));
    if (this.#hasChosen && page.data.some((item) => item.id === chosen)) this.#select.value = chosen;
    this.#button.disabled = page.data.length === 0;
    if (!page.data.length) this.#select.append(element("option", { value: "" }, "No checkpoint yet"));
  }

  choose(checkpoint) {
    if (![...this.#select.options].some((option) => option.value === checkpoint.id)) {
      this.#select.prepend(element("option", { value: checkpoint.id }, checkpoint.name));
    }
    this.#select.value = checkpoint.id;
    this.#hasChosen = true;
    byId("playground").scrollIntoView({ block: "nearest" });
    byId("playground-prompt").focus();
  }

  async #ask() {
    this.#asking = new AbortController();
    this.#button.textContent = "Stop";
    this.#answer.textContent = "";
    this.#answer.classList.add("busy");
    try {
      await this.#write(this.#asking.signal);
    } catch (error) {
      if (!this.#asking.signal.aborted) this.#answer.append(element("span", { className: "failed" }, error.message));
    } finally {
      this.#asking = null;
      this.#button.textContent = "Generate";
      this.#answer.classList.remove("busy");
    }
  }

  async #write(signal) {
    for await (const { event, data } of postStream("/generate", this.#request(), signal)) {
      const said = JSON.parse(data);
      if (event === "token") this.#answer.append(said.text);
      else if (event === "error") throw new Problem(0, said);
      else if (event === "done") return;
    }
    throw new Error(" The answer broke off.");
  }

  #request() {
    return {
      checkpoint: this.#select.value,
      prompt: byId("playground-prompt").value,
      max_new_tokens: byId("playground-tokens").valueAsNumber || 100,
      temperature: byId("playground-temperature").valueAsNumber || 0,
      ...(byId("playground-line").checked ? { stop: ["\n"] } : {}),
      stream: true,
    };
  }
}
