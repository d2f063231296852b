// --- The rest: listeners, sources, queue, requests, certificates, evidence, process ------------

function drawInputs(status) {
  list(at('listeners'), 'listener', status.listeners, (it) => it.listener, (node, it) => {
    const of = (name) => part(node, name);
    const own = it.address === null || it.address === it.listener;
    say(of('address'), own ? it.listener : it.address);
    const waits = it.address === null ? ', waits for its certificate' : '';
    const configured = own ? '' : `, configured as ${it.listener}`;
    say(of('kind'), `${it.tls ? 'HTTPS' : 'HTTP'}${configured}${waits}`);
    say(of('connections'), figure(it.connections));
    say(of('received'), bytes(it.received_bytes));
    say(of('latency'), delays(it));
    say(of('requests'), codes(it.requests) || 'none');
  });
  show(at('sources-table'), status.sources.length > 0);
  list(at('sources'), 'source', status.sources, (it) => it.name, (node, it) => {
    const of = (name) => part(node, name);
    say(of('name'), it.name);
    say(of('kind'), `${it.type}, topic ${it.topic}, group ${it.group}`);
    const where = count(it.partitions.length, 'partition', 'partitions');
    say(of('state'), `${it.state}, ${where}`);
    set(of('state'), 'data-state', it.last_error === null ? 'good' : 'warn');
    say(of('received'), bytes(it.received_bytes));
    say(of('error'), it.last_error ?? 'none');
  });
}

// Requests by the status of their answers: "1,204 × 200, 3 × 429".
function codes(requests) {
  const some = Object.entries(requests || {}).filter(([, value]) => value > 0);
  return some.map(([code, value]) => `${figure(value)} × ${code}`).join(', ');
}

function drawQueueFacts(status, elapsed) {
  const { queue } = status;
  const fill = fillOf(queue);
  fillBar(at('queue-bar'), fill, fillState(fill));
  say(at('queue-fault'), queue.fault || '');
  show(at('queue-fault'), queue.fault !== null);
  const events = (value) => count(value, 'event', 'events');
  const last = ago((queue.last_lost_seconds_ago ?? 0) + elapsed);
  const lost = queue.lost_events === 0 ? 'none' : `${events(queue.lost_events)}, last ${last}`;
  const needed = `${bytes(queue.needed_bytes)} of ${bytes(queue.capacity_bytes)}`;
  const full = queue.full ? `for ${duration((queue.full_seconds ?? 0) + elapsed)}` : 'no';
  facts(at('queue-facts'), [
    ['Needed', needed],
    ['Held', `${bytes(queue.bytes)}, ${events(queue.events)}`],
    ['At this pace', pace(queue) || '–'],
    ['Full', full, queue.full ? 'bad' : 'good'],
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
  const counts = Object.entries(status.rejected_requests).filter(([, value]) => value > 0);
  counts.sort(([, a], [, b]) => b - a);
  facts(at('rejected-counts'), counts.map(
    ([reason, value]) => [REJECTED[reason] || reason, count(value, 'request', 'requests')]));
}

function daysLeft(status, it) {
  return (it.not_after_seconds - status.time_seconds) / DAY;
}

function drawCertificates(status) {
  const all = status.certificates;
  show(at('certificates-none'), all.length === 0);
  show(at('certificates-table'), all.length > 0);
  const key = (it) => `${it.place} ${it.name} ${it.role}`;
  list(at('certificates'), 'certificate', all, key, (node, it) => {
    const days = daysLeft(status, it);
    const whose = { 'output server': 'the consumer\'s', 'listener client': 'a sender\'s' };
    say(part(node, 'name'), `${it.place} ${it.name}, ${it.role}: ${
      whose[`${it.place} ${it.role}`] || 'the relay\'s own'}`);
    say(part(node, 'ends'), new Date(it.not_after_seconds * 1000).toISOString().slice(0, 10));
    say(part(node, 'left'), days < 0 ? 'expired' : count(Math.floor(days), 'day', 'days'));
    set(part(node, 'left'), 'data-state', days < 3 ? 'bad' : days < 14 ? 'warn' : 'good');
  });
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

// The kube-apiservers that were heard: "3 heard, the longest silent one 8 s ago".
function apiservers(all, elapsed) {
  const ages = all.map((it) => it.last_heard_seconds_ago + elapsed);
  return ages.length === 0 ? 'not told by the events'
    : `${figure(ages.length)} heard, the longest silent one ${ago(Math.max(...ages))}`;
}

function drawProcess(status, elapsed) {
  const { memory_bytes: memory, memory_limit_bytes: limit, reloads: { success, error } } = status;
  const last = (it) => ago((it.last_seconds_ago ?? 0) + elapsed);
  const result = (it) => (it.count === 0 ? 'none' : `${figure(it.count)}, last ${last(it)}`);
  facts(at('process'), [
    ['Version', status.version],
    ['Revision', status.revision],
    ['Started', `${duration(status.uptime_seconds + elapsed)} ago`],
    ['Memory', limit === null ? bytes(memory) : `${bytes(memory)} of ${bytes(limit)}`,
      limit !== null && memory > NEARLY * limit ? 'warn' : 'good'],
    ['Config applied', result(success)],
    ['Config refused', result(error), error.count > 0 ? 'warn' : 'good'],
    ['kube-apiservers', apiservers(status.apiservers ?? [], elapsed)],
    ['Connections refused', refusedConnections(status.refused_connections, elapsed) || 'none',
      Object.keys(status.refused_connections).length > 0 ? 'warn' : 'good'],
    ['Lines of log dropped', figure(status.log_dropped_lines)],
  ]);
}
