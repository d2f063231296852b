// --- Memory: earlier answers of the relay ------------------------------------------------------

// Seconds that rates are averaged over, and the number of answers of /status that are kept.
const WINDOW = 10, SAMPLES = 16;
const HOUR = 3600;

let samples = [];      // the last answers of /status of one run of the relay
let restarted = null;  // when this page saw a restart
let lines = null;      // the charts' data; see `keep`

function output(status, name) {
  return status.outputs.find((it) => it.name === name);
}

function received(status) {
  return status.listeners.concat(status.sources).reduce((sum, it) => sum + it.received_bytes, 0);
}

// Another start of the relay, or a count that goes back: earlier counts can't be compared.
function remember(status) {
  const last = samples[samples.length - 1];
  const isBack = (it) => {
    const now = output(status, it.name);
    return now && now.delivered_events < it.delivered_events;
  };
  const again = last && last.start_time_seconds !== status.start_time_seconds;
  const back = last && (status.accepted_events < last.accepted_events || last.outputs.some(isBack));
  const stood = last && status.time_seconds <= last.time_seconds;
  if (again || back) restarted = new Date();
  if (again || back || stood) samples = [];
  samples.push(status);
  samples = samples.slice(-SAMPLES);
}

// How fast a count has grown over the last seconds; `null` if nothing can be compared. An output
// that is new has no earlier count.
function rate(read) {
  if (failure || samples.length < 2) return null;
  const newest = samples[samples.length - 1];
  const oldest = samples.find((it) => it.time_seconds >= newest.time_seconds - WINDOW);
  const [from, to] = [read(oldest), read(newest)];
  const seconds = newest.time_seconds - oldest.time_seconds;
  if (from === undefined || to === undefined || seconds <= 0) return null;
  return (to - from) / seconds;
}

// A rate in words. It is never below 0: a count goes back only where another run begins.
function perSecond(value) {
  return value === null ? '–' : scaled(Math.max(0, value));
}

const COLUMNS = ['accepted_events_per_second', 'refused_429_per_second', 'lost_events_per_second',
  'queue_needed_bytes'];
const OUTPUT_COLUMNS = ['delivered_events_per_second', 'backlog_events', 'lag_seconds',
  'errors_per_second', 'lost_events_per_second'];

// Takes an answer of /status/history. After a restart of the relay, the points of its earlier run
// stay before those of the new one, up to one hour: the relay itself has forgotten them.
function keep(answer) {
  const again = lines && lines.start !== answer.start_time_seconds;
  const run = again ? lines : lines?.earlier;
  const first = answer.time_seconds[0] ?? answer.start_time_seconds;
  const end = answer.time_seconds[answer.time_seconds.length - 1] ?? answer.start_time_seconds;
  const old = run ? run.times.filter((it) => it < first && it > end - HOUR) : [];
  const skip = old.length > 0 ? run.times.indexOf(old[0]) : 0;
  const before = (column) => old.map((_, index) => column?.[skip + index] ?? null);
  const join = (columns, now, then) => Object.fromEntries(
    columns.map((name) => [name, before(then?.[name]).concat(now?.[name] || [])]));
  const outputs = Object.entries(answer.outputs).map(
    ([name, it]) => [name, join(OUTPUT_COLUMNS, it, run?.outputs.get(name))]);
  const recent = (all) => (all || []).filter((it) => it.time > end - HOUR);
  const start = { time: answer.start_time_seconds, kind: run ? 'restart' : 'start' };
  const marks = answer.reloads.map(
    (it) => ({ time: it.time_seconds, kind: it.result === 'success' ? 'reload' : 'refused' }));
  lines = {
    start: answer.start_time_seconds,
    interval: answer.interval_seconds,
    times: old.concat(answer.time_seconds),
    columns: join(COLUMNS, answer, run?.columns),
    outputs: new Map(outputs),
    marks: recent(run?.marks).concat(recent([start, ...marks])),
    earlier: run ? { ...run, earlier: null } : null,
  };
}

// The sum of one column over all outputs, for each point; `null` where no output has a value.
function sumOf(column) {
  const all = [...lines.outputs.values()].map((it) => it[column]);
  return lines.times.map((_, index) => all.reduce((sum, values) => {
    const value = values[index];
    return value === null || value === undefined ? sum : (sum ?? 0) + value;
  }, null));
}
