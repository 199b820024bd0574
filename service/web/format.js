// Numbers and times as a person reads them.

const MISSING = "–";

export function loss(value) {
  return value == null ? MISSING : value.toFixed(4);
}

export function rate(value) {
  return value == null ? MISSING : Math.round(value).toLocaleString("en");
}

export function duration(seconds) {
  if (seconds == null || !Number.isFinite(seconds)) return MISSING;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${whole % 60}s`;
  return `${Math.floor(whole / 3600)}h ${Math.floor((whole % 3600) / 60)}m`;
}

export function size(bytes) {
  if (bytes == null) return MISSING;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, bytes)) / 10));
  return `${(bytes / 1024 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

/** How far a job is and where it ends; both count the runs before it. */
export function steps(job) {
  return `${job.step} / ${(job.start_step ?? 0) + job.training_steps}`;
}

/** An ISO time in the reader's own zone. */
export function moment(value) {
  return value == null ? MISSING : new Date(value).toLocaleString();
}
