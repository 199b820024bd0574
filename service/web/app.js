// The page: one table of jobs, one selected job (named in the address, so that a reload keeps it), one playground.

import { askAgain, askForKeyWith, getJson, keyState, Unreachable } from "./api.js";
import { byId } from "./dom.js";
import { JobPanel } from "./job.js";
import { JobTable } from "./jobs.js";
import { Playground } from "./playground.js";

const REFRESH_MILLISECONDS = 2000;
const PAGE = 15;

let numPages = 1;
const table = new JobTable(choose);
const playground = new Playground(report);
const panel = new JobPanel({
  report,
  refresh,
  tryCheckpoint: (checkpoint) => playground.choose(checkpoint),
  checkpointsChanged: () => playground.refresh(),
});

/** Show why something that was asked for did not happen; null takes it away again. */
function report(error) {
  // A service that does not answer is told of beside the title, by the next refresh.
  if (error instanceof Unreachable) return;
  byId("problem").hidden = error === null;
  byId("problem").textContent = error?.message ?? "";
}

function showConnection(isGood, text) {
  byId("connection").textContent = text;
  byId("connection").dataset.lost = !isGood;
}

async function refresh() {
  try {
    const { jobs, hasMore } = await listJobs();
    table.show(jobs);
    byId("jobs-more").hidden = !hasMore;
    table.select(panel.jobId);
    if (byId("connection").dataset.lost !== "false") playground.refresh();
    showConnection(true, "Connected");
  } catch (error) {
    byId("jobs-loading").hidden = true;
    showConnection(false, error instanceof Unreachable ? "Connection lost; trying again…" : error.message);
  }
  const { asked, declined } = keyState();
  // A link cannot carry the key, so it would end at a refusal.
  byId("api-link").hidden = asked;
  byId("give-key").hidden = !declined;
}

async function listJobs() {
  const jobs = [];
  for (;;) {
    const after = jobs.length ? `&after=${jobs.at(-1).id}` : "";
    const page = await getJson(`/jobs?limit=${PAGE}${after}`);
    jobs.push(...page.data);
    if (!page.has_more || jobs.length >= numPages * PAGE) return { jobs, hasMore: page.has_more };
  }
}

/** A person chose this job: it is opened and brought into view, also if it is the one that is open. */
function choose(jobId) {
  if (jobId === panel.jobId) panel.reveal();
  else location.hash = jobId;
}

function openFromAddress() {
  const jobId = location.hash.slice(1);
  panel.open(/^job_\w+$/.test(jobId) ? jobId : null);
  table.select(panel.jobId);
  report(null);
}

function askForKey() {
  const dialog = byId("key-dialog");
  byId("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    // Esc leaves what was typed in the field.
    const given = () => (dialog.returnValue === "use" ? byId("key").value.trim() : "");
    dialog.addEventListener("close", () => resolve(given() || null), { once: true });
  });
}

async function keepFresh() {
  for (;;) {
    // Nobody looks at a hidden tab.
    if (!document.hidden) await Promise.all([refresh(), panel.refresh()]);
    await new Promise((resolve) => setTimeout(resolve, REFRESH_MILLISECONDS));
  }
}

askForKeyWith(askForKey);
byId("give-key").addEventListener("click", () => {
  askAgain();
  refresh();
});
byId("jobs-more").addEventListener("click", () => {
  numPages += 1;
  refresh();
});
window.addEventListener("hashchange", () => {
  openFromAddress();
  panel.reveal();
});
openFromAddress();
keepFresh();
