// --- Words: numbers, times and reasons as a person reads them ----------------------------------

const DAY = 86400;
const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat('en', { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const short = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });

function count(value, one, many) {
  return `${whole.format(value)} ${value === 1 ? one : many}`;
}

const events = (value) => count(value, 'event', 'events');

function scaled(value) {
  return value > 0 && value < 99.95 ? fine.format(value) : whole.format(value);
}

// False if `scaled` shows a zero.
function isSeen(value) {
  return value >= 0.05;
}

// A number of at most 5 characters for an axis or a narrow cell: 950, 12.4k, 3.1M.
function brief(value) {
  if (value < 1000) return short.format(value);
  const units = ['k', 'M', 'G', 'T'];
  let unit = -1;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${short.format(value)}${units[unit]}`;
}

// Exact up to 99,999, and brief above.
function figure(value) {
  return value < 100000 ? whole.format(value) : brief(value);
}

// A share of something that is there is not zero: 0.01 %.
function percent(value) {
  const small = value < 0.005 ? '< 0.01' : value.toFixed(2);
  return `${value > 0 && value < 0.05 ? small : scaled(value)} %`;
}

const BYTES = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
// `value` in the unit that `like` has.
function bytes(value, like = value) {
  let unit = 0;
  while (like >= 1023.5 && unit < BYTES.length - 1) {
    value /= 1024;
    like /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? whole.format(value) : scaled(value)} ${BYTES[unit]}`;
}

// `seconds` in the two largest units, or in one unit if `one` is true.
function duration(seconds, one = false) {
  const rounded = Math.round(Math.max(0, seconds));
  const parts = [[DAY, 'd', 3600, 'h'], [3600, 'h', 60, 'min'], [60, 'min', 1, 's']];
  for (const [size, unit, rest, restUnit] of parts) {
    if (rounded >= size) {
      const remainder = Math.floor((rounded % size) / rest);
      const tail = remainder > 0 && !one ? ` ${remainder} ${restUnit}` : '';
      return `${Math.floor(rounded / size)} ${unit}${tail}`;
    }
  }
  return `${rounded} s`;
}

// A time below some seconds, such as a latency: 0.4 ms, 12 ms, 1.3 s.
function delay(seconds) {
  if (seconds === null) return '–';
  if (seconds < 0.00995) return `${fine.format(seconds * 1000)} ms`;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 59.95 ? `${fine.format(seconds)} s` : duration(seconds);
}

function delays(it) {
  const [half, most] = [it.latency_p50_seconds, it.latency_p99_seconds];
  return half === null && most === null ? '–' : `${delay(half)} / ${delay(most)}`;
}

function ago(seconds) {
  return seconds < 1 ? 'just now' : `${duration(seconds)} ago`;
}

function clock(time) {
  return time.toLocaleTimeString('en-GB');
}

// The counts of an object that are not 0, largest first: "12 connect, 3 tls".
function tally(counts, words = {}) {
  const some = Object.entries(counts || {}).filter(([, value]) => value > 0);
  some.sort(([, a], [, b]) => b - a);
  return some.map(([name, value]) => `${figure(value)} ${words[name] || name}`).join(', ');
}

function total(counts) {
  return Object.values(counts || {}).reduce((sum, it) => sum + it, 0);
}

const REJECTED = {
  invalid: 'not audit events', too_large: 'too large', queue_full: 'queue full',
  in_flight_full: 'too many bytes under way', unauthorized: 'unauthorized', timeout: 'too slow',
  not_found: 'wrong path', method: 'wrong method', media_type: 'wrong media type',
  shutting_down: 'shutting down', disk: 'disk refuses writes',
  delivery_timeout: 'consumers too slow',
};

// The reasons of failed attempts.
const ERRORS = {
  resolve: 'name not resolved', connect: 'not connected', tls: 'TLS', timeout: 'timeout',
  closed: 'closed', status_4xx: 'status 4xx', status_429: 'status 429', status_5xx: 'status 5xx',
  protocol: 'protocol', item: 'single events', acknowledgement: 'not acknowledged',
};

const ACKNOWLEDGE = {
  queued: 'queued: 200 once the events are in the queue',
  delivered: 'delivered: 200 once every required output has the events',
  synced: 'synced: 200 once the events are on the disk',
};

// The span of Retry-After: 0.6 to 1.6 times the setting.
function comeBack(queue) {
  const [from, to] = [0.6, 1.6].map((part) => Math.round(part * queue.retry_after_seconds));
  return `${Math.max(1, from)} to ${Math.max(1, to)} s`;
}

const FULL = {
  reject: 'senders get 429', drop_oldest: 'the oldest are dropped',
  drop_newest: 'new ones are dropped',
};

function whenFull(queue) {
  return {
    reject: `senders get 429 and are asked to come back after ${comeBack(queue)}`,
    drop_oldest: 'the oldest events are dropped for new ones and count as lost',
    drop_newest: 'new events are answered 200, dropped and counted as lost',
  }[queue.when_full];
}
