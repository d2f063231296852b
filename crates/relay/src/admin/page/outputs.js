// --- The table of outputs, worst first ---------------------------------------------------------

const opened = new Map();  // the names of the outputs whose details are open, with their charts

function toggle(name, node) {
  if (opened.has(name)) close(name);
  else opened.set(name, outputCharts(name, part(node, 'charts')));
  draw();
}

function close(name) {
  opened.get(name).forEach((chart) => chart.end());
  opened.delete(name);
}

function outputCharts(name, parent) {
  const of = (column) => () => lines.outputs.get(name)?.[column] || [];
  return [
    new Chart(parent, { title: 'Events', scale: 'count', unit: '/s', series: [
      { name: 'delivered', kind: 'flow', read: of('delivered_events_per_second') },
      { name: 'failed', kind: 'warn', read: of('errors_per_second') },
      { name: 'lost', kind: 'bad', read: of('lost_events_per_second') },
    ] }),
    new Chart(parent, { title: 'Backlog', scale: 'count', unit: '', series: [
      { name: 'events', kind: 'flow', read: of('backlog_events') },
    ] }),
    new Chart(parent, { title: 'Lag', scale: 'seconds', unit: '', series: [
      { name: 'age of the oldest', kind: 'flow', read: of('lag_seconds') },
    ] }),
  ];
}

function retryWords(it, elapsed) {
  if (it.next_retry_seconds === null) return '';
  const wait = it.next_retry_seconds - elapsed;
  return wait <= 0 ? 'next try now' : `next try in ${duration(Math.ceil(wait))}`;
}

function errorWords(it, elapsed) {
  if (it.last_error === null) return '';
  const age = it.last_error_seconds_ago;
  return `${it.last_error}${age === null ? '' : ` (${ago(age + elapsed)})`}`;
}

// The error without the address before it, which the details have: "400 Bad Request", and not
// "URL: answered 400 Bad Request".
function cause(error) {
  const [place] = error.split(': ', 1);
  const isPlace = !place.includes(' ') && (/:[/]/.test(place) || /:\d+$/.test(place));
  return (isPlace ? error.slice(place.length + 2) : error).replace(/^answered /, '');
}

// The words of the last column: the error of an output in trouble, otherwise only the error's age.
function whyWords(it, elapsed) {
  if (it.last_error === null) return '';
  const error = cause(it.last_error);
  if (isDown(it)) return [error, retryWords(it, elapsed)].filter(Boolean).join(' · ');
  if (it.trouble) return `${error} (${ago(it.last_error_seconds_ago + elapsed)})`;
  return it.last_error_seconds_ago === null ? '' : ago(it.last_error_seconds_ago + elapsed);
}

// A small lag differs from answer to answer, and does not grow in between.
function lagOf(it, elapsed) {
  if (it.backlog_events === 0) return 0;
  return it.lag_seconds < 5 ? it.lag_seconds : it.lag_seconds + elapsed;
}

function lossState(it) {
  return it.lost_events === 0 ? 'good' : it.required ? 'bad' : 'warn';
}

function drawOutput(node, { it, is }, elapsed) {
  const of = (name) => part(node, name);
  if (!node.hasAttribute('data-ready')) {
    set(node, 'data-ready', '');
    const id = `more-${it.name}`;
    of('more').id = id;
    set(of('open'), 'aria-controls', id);
    of('open').addEventListener('click', () => toggle(it.name, node));
    // The whole row opens it, too, except where somebody marks text.
    node.firstElementChild.addEventListener('click', (event) => {
      const marks = !document.getSelection().isCollapsed;
      if (!marks && !event.target.closest('button')) toggle(it.name, node);
    });
  }
  const isOpen = opened.has(it.name);
  set(node, 'data-state', is.state);
  say(of('name'), it.name);
    say(of('kind'), it.required ? it.type : `${it.type}, not required`);
  set(of('state'), 'data-state', is.state);
  say(of('state'), is.words);
  say(of('rate'), perSecond(it.delivered_events_per_second));
  say(of('backlog'), figure(it.backlog_events));
  const lag = lagOf(it, elapsed);
  say(of('lag'), lag < 1 ? '< 1 s' : duration(lag));
  set(of('lag'), 'data-state', lag >= 1 && (isLate(it) || isGrowing(it)) ? 'warn' : 'good');
  say(of('latency'), delays(it));
  say(of('lost'), figure(it.lost_events));
  set(of('lost'), 'data-state', lossState(it));
  const why = whyWords(it, elapsed);
  say(of('why'), why || 'none');
  say(of('why-narrow'), it.trouble ? why : '');
  const whole = (it.trouble ? errorWords(it, elapsed) : why).replaceAll('`', '');
  for (const name of ['why', 'why-narrow']) set(of(name), 'title', whole);
  set(of('open'), 'aria-expanded', isOpen);
  show(of('more'), isOpen);
  if (isOpen) drawDetails(of, it, elapsed);
}

function drawDetails(of, it, elapsed) {
  const before = it.up ? 'Last error, before it worked again' : 'Last error';
  say(of('error'), it.last_error === null ? '' : `${before}: ${errorWords(it, elapsed)}`);
  show(of('error'), it.last_error !== null);
  set(of('error'), 'data-state', isDown(it) ? 'bad' : 'good');
  const lostRate = it.lost_events_per_second;
  const lastLost = it.last_lost_seconds_ago;
  const lost = [
    figure(it.lost_events),
    lastLost === null ? '' : `last ${ago(lastLost + elapsed)}`,
    isSeen(lostRate) ? `now ${perSecond(lostRate)}/s` : '',
  ];
  const sent = it.sent_bytes_per_second;
  const lag = lagOf(it, elapsed);
  facts(of('facts'), [
    ['Next try', isDown(it) ? retryWords(it, elapsed).replace('next try ', '') : ''],
    ['Delivered', events(it.delivered_events)],
    ['Sent', `${bytes(it.sent_bytes)}${sent === null || failure ? '' : `, ${bytes(sent)}/s`}`],
    ['Backlog', `${events(it.backlog_events)}, ${bytes(it.backlog_bytes)}`],
    ['Set aside', it.aside ? events(it.aside.events) : '',
      it.aside && it.aside.at_fault ? 'warn' : 'good'],
    ['Lag', `${lag < 1 ? 'below 1 s' : duration(lag)} (late above ${duration(it.lag_max_seconds)})`,
      isLate(it) ? 'warn' : 'good'],
    ['Latency p50 / p99', delays(it)],
    ['Retried', count(it.retries, 'attempt', 'attempts')],
    ['Errors', tally(it.errors, ERRORS) || 'none'],
    ['Lost', lost.filter(Boolean).join(', '), lossState(it)],
    ['Dead letters', events(it.dead_letter_events)],
    ['Filtered', tally(it.filtered) || 'none', isDroppingAll(it) ? 'warn' : 'good'],
    ['Had it already', events(it.existing_events)],
    ['Strategy', it.strategy ? it.strategy.replace('_', ' ') : ''],
    ['Shape', it.shape || ''],
    ['While it is down', it.keeps_events ? 'its events are kept' : 'it may lose events'],
  ]);
  say(of('endpoints-title'), `Endpoints of ${it.name}`);
  show(of('endpoints').parentElement, it.addresses.length > 0);
  list(of('endpoints'), 'endpoint', it.addresses, (one) => `${one.endpoint} ${one.address}`,
    (row, one) => drawEndpoint(row, one, it, elapsed));
}

// The number counts the configured endpoints: two URLs may have the same host and port.
function drawEndpoint(row, one, it, elapsed) {
  const of = (name) => part(row, name);
  say(of('number'), `${one.endpoint + 1}.`);
  say(of('address'), one.address);
  const worst = isDown(it) && it.required ? 'bad' : 'warn';
  const other = { up: 'good', [ON_TRIAL]: 'warn' }[one.state] || 'note';
  set(of('state'), 'data-state', isBad(one) ? worst : other);
  say(of('state'), one.state);
  const since = `for ${duration(one.state_seconds + elapsed)}`;
  say(of('since'), one.used ? `${since}, used last` : since);
  say(of('requests'), figure(one.requests));
  say(of('sent'), bytes(one.sent_bytes));
  say(of('errors'), tally(one.errors, ERRORS) || 'none');
  say(of('latency'), delays(one));
  say(of('error'), one.last_error ? errorWords(one, elapsed) : 'none');
}

function drawOutputs(status, elapsed) {
  const sorted = byTrouble(status, elapsed);
  for (const name of opened.keys()) if (!output(status, name)) close(name);
  const bad = sorted.filter(({ it }) => it.trouble).length;
  const all = count(sorted.length, 'output', 'outputs');
  const first = bad === 1 ? 'which comes first' : 'which come first';
  say(at('out-words'), bad > 0 ? `${all}, ${bad} with trouble, ${first}` : `${all}, no trouble`);
  // If few outputs are in trouble, there is room for all of their errors.
  at('outputs').toggleAttribute('data-few', bad <= 4);
  list(at('outputs'), 'output', keepOrder(sorted), ({ it }) => it.name,
    (node, one) => drawOutput(node, one, elapsed));
}

// While somebody marks text in the table, its rows stay where they are: a row that moves would lose
// the marks.
function keepOrder(sorted) {
  const marked = document.getSelection();
  if (!marked || marked.isCollapsed || !at('outputs').contains(marked.anchorNode)) return sorted;
  const nodes = at('outputs').querySelectorAll('tbody.output');
  const before = Array.from(nodes, (node) => part(node, 'name').textContent);
  const place = ({ it }) => (before.indexOf(it.name) + before.length + 1) % (before.length + 1);
  return [...sorted].sort((a, b) => place(a) - place(b));
}
