// --- The signs of life, and the details --------------------------------------------------------

// The worst state of the findings of these kinds: the relay judges, and the page adds the colour.
function stateOf(status, kinds) {
  const states = all(status.verdict.findings).filter((it) => kinds.test(it.kind))
    .map((it) => it.state);
  return ['bad', 'warn'].find((it) => states.includes(it));
}

// "checkpoint 4 s ago, cosigned 5 s ago by 2 witnesses", the age of the oldest cosignature.
function evidenceWords({ last_checkpoint_seconds_ago: last, witnesses }, elapsed) {
  const when = (seconds) => ago(seconds + elapsed);
  const words = last === null ? 'no checkpoint yet' : `checkpoint ${when(last)}`;
  const oldest = Math.max(...witnesses.map((it) => it.last_seconds_ago ?? Infinity));
  if (oldest < 0) return words;
  return `${words}, ${oldest === Infinity ? 'not cosigned by all yet'
    : `cosigned ${when(oldest)} by ${count(witnesses.length, 'witness', 'witnesses')}`}`;
}

// One line above the fold, the oldest promise first.
function drawSigns(status, elapsed) {
  const { evidence, certificates, listeners, sources, reloads } = status;
  const days = certificates.map((it) => daysLeft(status, it));
  const open = listeners.filter((it) => it.address !== null).length;
  const reading = sources.filter((it) => it.state === 'reading').length;
  const { success: applied, error: refused } = reloads;
  const since = (it) => it.last_seconds_ago ?? Infinity;
  const [word, age] = since(refused) < since(applied) ? ['refused', since(refused)]
    : ['applied', since(applied)];
  facts(at('signs'), [
    ['Evidence', evidence ? evidenceWords(evidence, elapsed) : 'off',
      stateOf(status, /^(evidence|witness)/)],
    ['Certificates', days.length > 0 && daysWords(Math.min(...days)),
      stateOf(status, /^certificate/)],
    ['Listeners', listeners.length > 0 && `${open} of ${listeners.length} open`,
      stateOf(status, /^(listener|slow|tls|connections)/)],
    ['Sources', sources.length > 0 && `${reading} of ${sources.length} read`,
      stateOf(status, /^source/)],
    ['Config', age < Infinity ? `${word} ${ago(age + elapsed)}` : 'as at the start',
      stateOf(status, /^reload/)],
    ['Memory', memoryWords(status), stateOf(status, /^memory/)],
  ]);
}

function drawInputs(status) {
  facts(at('listeners'), status.listeners.map((it) => {
    const own = it.address === null || it.address === it.listener;
    return [own ? it.listener : it.address, [
      `${it.tls ? 'HTTPS' : 'HTTP'}${own ? '' : `, configured as ${it.listener}`}`,
      it.address === null ? 'waits for its certificate' : '',
      count(it.connections, 'connection', 'connections'),
      `${bytes(it.received_bytes)} received`,
      `answers p50 / p99 ${delays(it)}`,
      codes(it.requests) || 'no request',
    ].filter(Boolean).join(' · '), it.address === null ? 'warn' : 'good'];
  }));
  facts(at('sources'), status.sources.map((it) => [it.name, [
    `${it.type}, topic ${it.topic}, group ${it.group}`,
    `${it.state}, ${count(it.partitions.length, 'partition', 'partitions')}`,
    `${bytes(it.received_bytes)} received`,
    it.last_error ?? 'no error',
  ].join(' · '), it.last_error === null ? 'good' : 'warn']));
}

// Requests by the status of their answers: "1,204 × 200, 3 × 429".
function codes(requests) {
  const some = Object.entries(requests || {}).filter(([, value]) => value > 0);
  return some.map(([code, value]) => `${figure(value)} × ${code}`).join(', ');
}

function drawQueueFacts(status, elapsed) {
  const { queue } = status;
  say(at('queue-fault'), queue.fault || '');
  show(at('queue-fault'), queue.fault !== null);
  const last = ago((queue.last_lost_seconds_ago ?? 0) + elapsed);
  const lost = queue.lost_events === 0 ? 'none' : `${events(queue.lost_events)}, last ${last}`;
  facts(at('queue-facts'), [
    ['Needed', `${bytes(queue.needed_bytes)} of ${bytes(queue.capacity_bytes)}`],
    ['Held', `${bytes(queue.bytes)}, ${events(queue.events)}`],
    ['When it is full', queue.when_full && `${queue.when_full}: ${whenFull(queue)}`],
    ['Acknowledged', ACKNOWLEDGE[status.acknowledge]],
    ['Not yet in the queue', bytes(status.in_flight_bytes)],
    ['Dead letters deleted', figure(status.dead_letters_dropped_events),
      status.dead_letters_dropped_events > 0 ? 'bad' : 'good'],
    ['Lost in the queue', lost, queue.lost_events > 0 ? 'bad' : 'good'],
  ]);
}

function drawRejected(status, elapsed) {
  const last = status.last_rejected;
  show(at('rejected-none'), last === null);
  show(at('rejected'), last !== null);
  if (last === null) return;
  say(at('rejected-what'), `${last.code} ${REJECTED[last.reason] || last.reason}`);
  say(at('rejected-when'), `${ago(last.seconds_ago + elapsed)}, at ${last.listener}`);
  say(at('rejected-message'), last.message);
  say(at('rejected-counts'), `Refused so far: ${tally(status.rejected_requests, REJECTED)}`);
}

function daysLeft(status, it) {
  return (it.not_after_seconds - status.time_seconds) / DAY;
}

function daysWords(days) {
  if (days < 1) return days < 0 ? 'expired' : 'below 1 day';
  return count(Math.floor(days), 'day', 'days');
}

function drawCertificates(status) {
  const all = status.certificates;
  show(at('certificates-none'), all.length === 0);
  const whose = { 'output server': 'the consumer\'s', 'listener client': 'a sender\'s' };
  facts(at('certificates'), all.map((it) => {
    const days = daysLeft(status, it);
    const owner = whose[`${it.place} ${it.role}`] || 'the relay\'s own';
    const end = new Date(it.not_after_seconds * 1000).toISOString().slice(0, 10);
    return [`${it.place} ${it.name}, ${it.role}: ${owner}`, `${daysWords(days)}, until ${end}`,
      days < 3 ? 'bad' : days < 14 ? 'warn' : 'good'];
  }));
}

function drawEvidence(status, elapsed) {
  const it = status.evidence;
  show(at('evidence-none'), !it);
  show(at('evidence'), Boolean(it));
  if (!it) return;
  const when = (seconds) => (seconds === null ? 'not since the start' : ago(seconds + elapsed));
  facts(at('evidence'), [
    ['Size', count(it.size, 'entry', 'entries')],
    ['Last checkpoint', when(it.last_checkpoint_seconds_ago)],
    ...it.witnesses.map((one) => [`Witness ${one.name}`, when(one.last_seconds_ago),
      one.last_seconds_ago === null ? 'warn' : 'good']),
    ['Errors', tally(it.errors) || 'none', total(it.errors) > 0 ? 'warn' : 'good'],
  ]);
}

// Refused connections by reason: "12 all busy, last 3 s ago".
function refusedConnections(refused, elapsed) {
  return Object.entries(refused).map(([reason, it]) => `${figure(it.count)} `
    + `${reason.replace('_', ' ')}, last ${ago(it.last_seconds_ago + elapsed)}`).join('; ');
}

// The kube-apiservers that were heard: "3 heard; the one silent for longest was heard 8 s ago".
function apiservers(all, elapsed) {
  const ages = all.map((it) => it.last_heard_seconds_ago + elapsed);
  return ages.length === 0 ? 'not told by the events'
    : `${figure(ages.length)} heard; the one silent for longest was heard ${ago(Math.max(...ages))}`;
}

function memoryWords({ memory_bytes: memory, memory_limit_bytes: limit }) {
  return limit === null ? bytes(memory) : `${bytes(memory)} of ${bytes(limit)}`;
}

function drawProcess(status, elapsed) {
  const { reloads: { success, error } } = status;
  const last = (it) => ago((it.last_seconds_ago ?? 0) + elapsed);
  const result = (it) => (it.count === 0 ? 'none' : `${figure(it.count)}, last ${last(it)}`);
  facts(at('process'), [
    ['Revision', status.revision],
    ['Memory', memoryWords(status), stateOf(status, /^memory/)],
    ['Config applied', result(success)],
    ['Config refused', result(error), error.count > 0 ? 'warn' : 'good'],
    ['kube-apiservers', apiservers(status.apiservers ?? [], elapsed)],
    ['Connections refused', refusedConnections(status.refused_connections, elapsed) || 'none',
      Object.keys(status.refused_connections).length > 0 ? 'warn' : 'good'],
    ['Lines of log dropped', figure(status.log_dropped_lines)],
  ]);
}
