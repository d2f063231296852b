// --- Memory: earlier answers of the relay ------------------------------------------------------

const HOUR = 3600;

let restarted = null;  // when this page saw a restart
let lines = null;      // the charts' data; see `keep`

function output(status, name) {
  return status.outputs.find((it) => it.name === name);
}

// Notes a restart: the relay has another start time, or a count has gone back.
function compare(last, status) {
  const isBack = (it) => output(status, it.name)?.delivered_events < it.delivered_events;
  const again = last.start_time_seconds !== status.start_time_seconds;
  const back = status.accepted_events < last.accepted_events || last.outputs.some(isBack);
  if (again || back) restarted = new Date();
}

// A rate of the last minute in words; unknown while the relay does not answer.
function perSecond(value) {
  return failure || value === null ? '–' : scaled(value);
}

const COLUMNS = ['accepted_events_per_second', 'refused_429_per_second', 'lost_events_per_second',
  'queue_needed_bytes'];
const OUTPUT_COLUMNS = ['delivered_events_per_second', 'backlog_events', 'lag_seconds',
  'errors_per_second', 'lost_events_per_second'];

// Takes an answer of /status/history. After a restart of the relay, the points of the earlier run
// stay before the new ones, up to one hour: the relay itself has forgotten them.
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
