// --- The flow: what comes in, waits, goes out, and is lost -------------------------------------

const read = (column) => () => lines.columns[column];

function makeCharts() {
  const add = (id, title, scale, unit, series) => {
    return new Chart(at(id), { title, untitled: true, scale, unit, series });
  };
  add('in-chart', 'Accepted events', 'count', '/s', [
    { name: 'accepted', kind: 'flow', read: read('accepted_events_per_second') },
  ]);
  add('queue-chart', 'Bytes that fill the queue', 'bytes', '', [
    { name: 'needed', kind: 'flow', read: read('queue_needed_bytes') },
  ]);
  add('sent-chart', 'Delivered events', 'count', '/s', [
    { name: 'delivered', kind: 'flow', read: () => sumOf('delivered_events_per_second') },
    { name: 'failed', kind: 'warn', read: () => sumOf('errors_per_second') },
  ]);
  add('gone-chart', 'Lost events, and requests that got 429', 'count', '/s', [
    { name: 'lost', kind: 'bad', read: read('lost_events_per_second') },
    { name: '429', kind: 'warn', read: read('refused_429_per_second') },
  ]);
}

// A forecast by the growth of the last minutes. The relay computes the growth over enough minutes
// that one burst makes no forecast.
function pace(queue) {
  const { capacity_bytes: capacity, needed_bytes: needed } = queue;
  const growth = queue.growth_bytes_per_second;
  // A full queue, and one that stores nothing, does not get fuller or emptier at this pace.
  if (!growth || fillOf(queue) < 0.1 || failure || queue.full || queue.fault) return '';
  const left = growth > 0 ? (capacity - needed) / growth : needed / -growth;
  if (left >= DAY) return '';
  return `${growth > 0 ? 'full' : 'empty'} in ${duration(left, true)}`;
}

function drawFlow(status, elapsed) {
  const { queue } = status;
  say(at('in-rate'), perSecond(status.accepted_events_per_second));
  say(at('in-unit'), failure ? '' : `events/s · ${bytes(status.received_bytes_per_second)}/s`);
  const last = status.last_event_seconds_ago;
  const lastWords = last === null ? 'no event since the start'
    : `last event ${ago(last + elapsed)}`;
  say(at('in-words'), `${figure(status.accepted_events)} accepted · ${lastWords}`);

  const fill = fillOf(queue);
  fillBar(at('queue-bar'), fill, fillState(fill));
  say(at('queue-percent'), percent(fill * 100));
  set(at('queue-percent'), 'data-state', queue.full ? 'bad' : fillState(fill));
  const kind = queue.kind === 'disk' ? 'on disk' : 'in memory';
  say(at('queue-where'), `of ${bytes(queue.capacity_bytes)} ${kind}`);
  const full = queue.full_seconds === null ? ''
    : `Full for ${duration(queue.full_seconds + elapsed)}: `;
  say(at('queue-words'), queue.full ? `${full}${FULL[queue.when_full]}`
    : `${events(queue.events)} wait · ${
      pace(queue) || bytes(queue.needed_bytes)}`);
  set(at('queue-words'), 'data-state', queue.full ? 'bad' : 'good');

  const sum = (name) => status.outputs.reduce((all, one) => all + one[name], 0);
  say(at('sent-rate'), perSecond(sum('delivered_events_per_second')));
  say(at('sent-unit'), failure ? '' : `events/s · ${bytes(sum('sent_bytes_per_second'))}/s`);
  const outputs = count(status.outputs.length, 'output', 'outputs');
  say(at('sent-words'), `${figure(sum('delivered_events'))} delivered by ${outputs}`);

  const { lost_events_per_second: lost, refused_429_per_second: refused } = status;
  say(at('gone-rate'), perSecond(lost));
  set(at('gone-rate'), 'data-state', isSeen(lost) ? 'bad' : 'good');
  say(at('gone-unit'), failure ? '' : `lost/s · ${perSecond(refused)}/s get 429`);
  const lastLost = status.last_lost_seconds_ago;
  say(at('gone-chart-words'), lastLost === null ? 'no event lost since the start'
    : `${figure(status.lost_events)} lost · last ${ago(lastLost + elapsed)}`);
}
