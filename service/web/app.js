// The page: one table of jobs, one selected job (named in the address, so that a reload keeps it), one playground.

import { askForKeyWith, getJson, Unreachable } from "./api.js";
import { byId } from "./dom.js";
import { JobPanel } from "./job.js";
import { JobTable } from "./jobs.js";
import { Playground } from "./playground.js";

const REFRESH_MILLISECONDS = 2000;

const table = new JobTable();
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
    const page = await getJson("/jobs?limit=50");
    table.show(page.data);
    table.select(panel.jobId);
    if (byId("connection").dataset.lost !== "false") playground.refresh();
    showConnection(true, "Connected");
  } catch (error) {
    byId("jobs-loading").hidden = true;
    showConnection(false, error instanceof Unreachable ? "Connection lost; trying again…" : error.message);
  }
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
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(byId("key").value || null), { once: true });
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
window.addEventListener("hashchange", openFromAddress);
openFromAddress();
keepFresh();
