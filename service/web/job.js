// The selected job: what it is, its loss and log as they come, its checkpoints, and what can be done with it.

import { getJson, jobEvents, postJson, Problem } from "./api.js";
import { LossChart } from "./chart.js";
import { actionButton, byId, element } from "./dom.js";
import * as format from "./format.js";
import { showState } from "./jobs.js";
import { Log } from "./log.js";

const WAITING = new Set(["queued", "starting", "running", "retry_wait"]);
const FINAL = new Set(["succeeded", "failed", "cancelled"]);

export class JobPanel {
  #chart = new LossChart(byId("chart"), byId("chart-readout"));
  #log = new Log(byId("log"));
  #watching = null;
  #shownState = null;

  /** `page` has report(error), refresh(), tryCheckpoint(checkpoint) and checkpointsChanged(). */
  constructor(page) {
    this.page = page;
    this.jobId = null;
  }

  /** Show another job, or none for null. */
  open(jobId) {
    this.#watching?.abort();
    this.jobId = jobId;
    byId("job").hidden = jobId === null;
    if (jobId === null) return;
    this.#shownState = null;
    this.#chart.clear();
    this.#log.clear();
    byId("job-title").textContent = "Loading…";
    byId("checkpoints").replaceChildren();
    this.#watching = new AbortController();
    this.#watch(jobId, this.#watching.signal);
    this.refresh();
    this.#listCheckpoints();
  }

  /** Bring it into view, if there is a job to see. */
  reveal() {
    byId("job").scrollIntoView({ block: "start" });
  }

  async refresh() {
    const { jobId } = this;
    if (jobId === null) return;
    try {
      const job = await getJson(`/jobs/${encodeURIComponent(jobId)}`);
      if (jobId === this.jobId) this.#show(job);
    } catch (error) {
      this.page.report(error);
      if (error instanceof Problem && error.status === 404 && jobId === this.jobId) this.open(null);
    }
  }

  #show(job) {
    byId("job-title").textContent = job.name;
    showState(byId("job-state"), job.state);
    byId("job-facts").textContent = [
      job.id, `step ${format.steps(job)}`, `train loss ${format.loss(job.train_loss)}`, `val loss ${format.loss(job.val_loss)}`,
      `${format.rate(job.tokens_per_second)} tokens/s`, `${format.duration(job.eta_seconds)} left`,
      `attempt ${job.attempt}`, `asked for ${format.moment(job.created_at)}`,
    ].join(" · ");
    byId("job-error").hidden = !job.error;
    byId("job-error").textContent = job.error?.message ?? job.error ?? "";
    if (job.state !== this.#shownState) this.#offerActions(job);
    this.#shownState = job.state;
  }

  #offerActions(job) {
    const offered = [];
    if (WAITING.has(job.state)) offered.push(this.#action("Pause", `/jobs/${job.id}/pause`));
    if (WAITING.has(job.state) || job.state === "paused") offered.push(this.#action("Cancel", `/jobs/${job.id}/cancel`));
    if (job.state === "paused") offered.push(actionButton("Resume", () => this.#resume(job.id, {})));
    if (FINAL.has(job.state) && job.checkpoint) {
      offered.push(actionButton("Resume", () => this.#resume(job.id, stepsToAdd())));
    }
    byId("job-actions").replaceChildren(...offered);
  }

  #action(label, path) {
    return actionButton(label, async () => {
      this.page.report(null);
      const job = await postJson(path).catch((error) => this.page.report(error));
      if (job) this.#show(job);
      this.page.refresh();
    });
  }

  async #resume(ref, body) {
    this.page.report(null);
    const job = await postJson(`/jobs/${encodeURIComponent(ref)}/resume`, body)
      .catch((error) => this.page.report(error));
    if (!job) return;
    this.page.refresh();
    if (job.id === this.jobId) this.open(job.id);
    else location.hash = job.id;
  }

  async #watch(jobId, signal) {
    const status = byId("job-stream");
    status.textContent = "Connecting to its events…";
    const onConnection = (isLive) => {
      status.textContent = isLive ? "" : "The connection to its events is lost; trying again…";
    };
    try {
      for await (const event of jobEvents(jobId, signal, onConnection)) if (!signal.aborted) this.#take(event);
      if (!signal.aborted) status.textContent = "";
    } catch (error) {
      if (!signal.aborted) status.textContent = error.message;
    }
  }

  #take({ kind, data }) {
    if (kind === "step") this.#chart.addStep(data.step, data.loss);
    else if (kind === "eval") this.#chart.addEvaluation(data.step, data.train_loss, data.val_loss);
    else if (kind === "log") this.#log.add(data.line);
    else if (kind === "warning") this.#log.add(`⚠️ ${data.message}`);
    else if (kind === "resumed") this.#chart.cutAfter(data.from_step);
    else if (kind === "state") this.refresh();
    else if (kind === "checkpoint" || kind === "done") {
      this.#listCheckpoints();
      this.page.checkpointsChanged();
    }
  }

  async #listCheckpoints() {
    const { jobId } = this;
    const page = await getJson(`/checkpoints?job=${encodeURIComponent(jobId)}&limit=50`)
      .catch((error) => this.page.report(error));
    if (!page || jobId !== this.jobId) return;
    const none = element("li", { className: "quiet" }, "None yet.");
    byId("checkpoints").replaceChildren(...(page.data.length ? page.data.map((item) => this.#checkpoint(item)) : [none]));
  }

  #checkpoint(item) {
    const numbers = `step ${item.step} · val loss ${format.loss(item.val_loss)} · ${format.size(item.size_bytes)}`;
    return element("li", {},
      element("div", {}, element("strong", {}, numbers), element("code", {}, item.name)),
      element("span", { className: "actions" },
        actionButton("Resume", () => this.#resume(item.id, stepsToAdd())),
        actionButton("Generate", () => this.page.tryCheckpoint(item))));
  }
}

function stepsToAdd() {
  const steps = byId("resume-steps").valueAsNumber;
  return Number.isNaN(steps) ? {} : { training_steps: steps };
}
