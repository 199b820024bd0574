// The table of jobs. Rows are kept and altered in place, so that a refresh takes neither focus nor selection away.

import { byId, element } from "./dom.js";
import * as format from "./format.js";

const COLUMNS = ["Name", "State", "Progress", "Step", "Train loss", "Val loss", "Tokens/s", "Left"];

const START_LINE = (origin) =>
  `curl -X POST ${origin}/jobs -H 'Content-Type: application/json' -d '{"training_steps": 200}'`;

export class JobTable {
  #rows = new Map();
  #body = byId("jobs").tBodies[0];

  /** `choose(jobId)` is called for the row that a person picks. */
  constructor(choose) {
    this.choose = choose;
    byId("start-line").textContent = START_LINE(location.origin);
  }

  show(jobs) {
    byId("jobs-loading").hidden = true;
    byId("jobs-empty").hidden = jobs.length > 0;
    byId("jobs").hidden = jobs.length === 0;
    const present = new Set(jobs.map((job) => job.id));
    for (const [id, row] of this.#rows) if (!present.has(id)) this.#remove(id, row);
    jobs.forEach((job, place) => this.#put(job, place));
  }

  select(jobId) {
    for (const [id, row] of this.#rows) {
      if (id === jobId) row.element.setAttribute("aria-selected", "true");
      else row.element.removeAttribute("aria-selected");
    }
  }

  #put(job, place) {
    if (!this.#rows.has(job.id)) this.#rows.set(job.id, new JobRow(job.id, this.choose));
    const row = this.#rows.get(job.id);
    row.update(job);
    const occupant = this.#body.children[place];
    if (occupant !== row.element) this.#body.insertBefore(row.element, occupant ?? null);
  }

  #remove(id, row) {
    row.element.remove();
    this.#rows.delete(id);
  }
}

class JobRow {
  #link;
  #cells;
  #bar = element("progress", { max: 1 });

  constructor(jobId, choose) {
    this.#link = element("a", { href: `#${jobId}` });
    this.#cells = COLUMNS.map((label) => {
      const cell = element("td");
      cell.dataset.label = label;
      return cell;
    });
    this.#cells[0].append(this.#link);
    this.#cells[1].append(element("span", { className: "state" }));
    this.#cells[2].append(this.#bar);
    this.element = element("tr", {}, ...this.#cells);
    this.element.addEventListener("click", () => choose(jobId));
  }

  update(job) {
    this.#link.textContent = job.name;
    showState(this.#cells[1].firstChild, job.state);
    this.#bar.value = job.progress ?? 0;
    this.#bar.title = `${Math.round(100 * (job.progress ?? 0))} %`;
    const numbers = [format.steps(job), format.loss(job.train_loss), format.loss(job.val_loss),
      format.rate(job.tokens_per_second), format.duration(job.eta_seconds)];
    numbers.forEach((text, place) => { this.#cells[3 + place].textContent = text; });
  }
}

export function showState(badge, state) {
  badge.textContent = state.replace("_", " ");
  badge.dataset.state = state;
}
