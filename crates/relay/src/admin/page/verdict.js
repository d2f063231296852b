// --- The verdict, and the states of outputs ----------------------------------------------------

// The relay judges: /status has the verdict, its findings, and which outputs are in trouble. The
// page adds only two facts that the relay can't know: that it does not answer, and that it was
// restarted.

// The fill level from which the queue has a colour. NEARLY_FULL is the relay's own threshold; the
// relay puts it before the script.
const HALF = 0.5;

function isWaiting(it) {
  return !it.up && it.down_seconds === null;
}

function isDown(it) {
  return !it.up && !isWaiting(it);
}

// True if an event has waited for longer than a working output ever needs.
function isLate(it) {
  return it.backlog_events > 0 && it.lag_seconds > it.lag_max_seconds && !it.paused;
}

// True for an address that deliveries pass over. An address on trial answers connections, and one
// delivery at a time tries it.
const ON_TRIAL = 'back, on trial';
function isBad({ state }) {
  return !['up', 'unknown', ON_TRIAL].includes(state);
}

// True if events wait longer and longer, and this is trouble. An output that collects events for
// minutes is healthy.
function isGrowing(it) {
  return it.growing && it.trouble !== null;
}

// True if the filter has dropped every event for minutes. The relay judges this; other trouble may
// hide it.
function isDroppingAll(it) {
  return it.trouble !== null && it.all_dropped_seconds >= ALL_DROPPED;
}

// The state of an output in a few words, the worst first.
function stateWords(it, elapsed) {
  const [bad, all] = [it.addresses.filter(isBad).length, it.addresses.length];
  const trials = it.addresses.filter(({ state }) => state === ON_TRIAL).length;
  if (it.paused) {
    return it.backlog_events > 0 ? `paused ${duration(it.lag_seconds + elapsed)}` : 'paused';
  }
  if (it.unsteady) return 'fails and works, in turn';
  if (isDown(it)) return `down ${duration(it.down_seconds + elapsed)}`;
  const first = isLate(it) ? 'late' : isGrowing(it) ? 'lag grows' : isWaiting(it) ? 'idle' : 'up';
  const lost = it.last_lost_seconds_ago;
  const words = [
    first,
    lost !== null && lost < 60 ? 'losing' : it.lost_events > 0 ? 'lost' : '',
    bad > 0 ? `${bad} of ${all} down` : '',
    trials > 0 ? `${trials} of ${all} on trial` : '',
    isDroppingAll(it) ? 'all filtered' : '',
  ];
  return words.filter(Boolean).join(', ');
}

function conditionOf(it, elapsed) {
  const state = it.trouble || (it.paused || isWaiting(it) ? 'note' : 'good');
  return { state, words: stateWords(it, elapsed) };
}

// The outputs: bad trouble first, then other trouble, outputs that are down first in each, then the
// rest; by name.
function byTrouble(status, elapsed) {
  const rank = ({ trouble }) => ({ bad: 0, warn: 2 }[trouble] ?? 4);
  const place = (it) => rank(it) + (it.trouble && (it.unsteady || !isDown(it)) ? 1 : 0);
  const order = (a, b) => place(a) - place(b) || (a.name < b.name ? -1 : 1);
  return [...status.outputs].sort(order).map((it) => ({ it, is: conditionOf(it, elapsed) }));
}

// The fill level of the queue: only needed bytes count.
function fillOf(queue) {
  return queue.needed_bytes / queue.capacity_bytes;
}

function fillState(fill) {
  return fill > NEARLY_FULL ? 'bad' : fill > HALF ? 'warn' : 'good';
}

function all(findings) {
  return findings.flatMap((it) => [it, ...(it.consequences || [])]);
}

// The finding about events that senders may have given up: the relay can't count them.
function lostThere(status) {
  return all(status.verdict.findings).find((it) => it.about === 'senders' && it.state !== 'note');
}

// The words of that finding up to the reason, and the age of the last such refusal.
function lostThereWords(status, elapsed) {
  const words = lostThere(status)?.text.split(':')[0];
  const ages = Object.values(status.refusals).map((it) => it.long_ended_seconds_ago);
  const known = ages.filter((it) => it !== null);
  return words && known.length > 0 ? `${words} (last ${ago(Math.min(...known) + elapsed)})` : words;
}

function lostState(status) {
  const expected = status.outputs.reduce((sum, it) => sum + (it.required ? 0 : it.lost_events), 0);
  if (status.lost_events > 0) return status.lost_events > expected ? 'bad' : 'warn';
  if (lostThere(status) || status.earlier_lost_events) return 'warn';
  return status.earlier_known ? 'good' : 'note';
}

function lostBy(status) {
  const some = status.outputs.filter((it) => it.lost_events > 0).map((it) => {
    const kept = figure(it.dead_letter_events);
    const letters = it.dead_letter_events > 0 ? ` (${kept} in the dead letters)` : '';
    return `${figure(it.lost_events)} by ${it.name}${letters}`;
  });
  if (status.queue.lost_events > 0) some.push(`${figure(status.queue.lost_events)} in the queue`);
  const named = status.outputs.reduce((sum, it) => sum + it.lost_events, status.queue.lost_events);
  const others = status.lost_events - named;
  if (others > 0) some.push(`${figure(others)} by outputs that are gone`);
  return some.join(', ');
}

function lossWords(status, elapsed) {
  const { last_lost_seconds_ago: last, lost_events_per_second: speed } = status;
  const age = last === null ? '' : `last ${ago(last + elapsed)}`;
  const now = isSeen(speed) ? `now ${perSecond(speed)}/s` : '';
  const since = `since the start ${duration(status.uptime_seconds + elapsed)} ago`;
  const words = [lostBy(status), age, now, lostThereWords(status, elapsed), since];
  return words.filter(Boolean).join('; ');
}

function verdictOf(status) {
  if (failure) {
    const text = 'This page does not know what has happened to events since then.';
    return { state: 'bad', text: 'The relay does not answer.', findings: [{ state: 'bad', text }] };
  }
  if (!restarted) return status.verdict;
  const text = `The relay was restarted; this page saw it at ${clock(restarted)}. ` +
    'The counts began again.';
  return { ...status.verdict, findings: [...status.verdict.findings, { state: 'note', text }] };
}

// Findings with the same state and advice share a line, so that 20 outputs that are down leave room
// for the table. The headline is not repeated. What follows from a finding stands below it, without
// advice, because it ends with its cause. Lost events stay lost.
const TEXTS_MAX = 2;
const LASTING = ['events_lost', 'senders_gave_up'];
function grouped(findings, headline) {
  const groups = new Map();
  const groupOf = (map, key, { state, runbook }, advice, below) => {
    const group = map.get(key) ||
      { key, state, advice, runbook, below, texts: [], follows: new Map() };
    if (state === 'bad') group.state = state;
    return map.set(key, group).get(key);
  };
  for (const finding of findings) {
    const key = `${finding.state} ${finding.advice}`;
    const group = groupOf(groups, key, finding, finding.advice || '', false);
    if (finding.text !== headline) group.texts.push(finding.text);
    for (const it of finding.consequences || []) {
      const advice = LASTING.includes(it.kind) ? it.advice : '';
      groupOf(group.follows, `${key} so ${advice}`, it, advice, true).texts.push(it.text);
    }
  }
  const words = (texts) => {
    const more = texts.length - TEXTS_MAX;
    const last = more > 0 ? [`And ${more} more like this.`] : [];
    return texts.slice(0, TEXTS_MAX).concat(last).join(' ');
  };
  return [...groups.values()].flatMap((it) => [it, ...it.follows.values()])
    .map((it) => ({ ...it, words: words(it.texts) })).filter((it) => it.words || it.advice);
}

let spoken = '';  // the findings read aloud last

function drawVerdict(status, elapsed) {
  const { state, text, findings } = verdictOf(status);
  set(at('verdict'), 'data-state', state);
  say(at('headline'), text);
  set(at('lost'), 'data-state', lostState(status));
  const lost = `lost: ${whole.format(status.lost_events)}`;
  say(at('lost'), lost);
  say(at('lost-words'), lossWords(status, elapsed));
  list(at('findings'), 'finding', grouped(findings, text), (it) => it.key, (node, it) => {
    set(node, 'data-state', it.state);
    node.toggleAttribute('data-below', it.below);
    say(part(node, 'words'), it.words);
    const page = it.advice && it.runbook;
    say(part(node, 'advice'), it.advice);
    say(part(node, 'runbook'), page ? 'Runbook' : '');
    if (page) set(part(node, 'runbook'), 'href', `.${page}`);
  });
  // A finding is read aloud when it comes, not when a figure in it changes. While the relay is gone,
  // the alert says so.
  const heard = [state, ...all(findings).map((it) => `${it.state} ${it.about}`)].join('\n');
  if (heard !== spoken) {
    spoken = heard;
    const words = failure ? '' : [text, ...all(findings).map((it) => it.text)].join(' ');
    say(at('spoken'), words.replaceAll('`', ''));
  }
  const mark = { bad: '✕ ', warn: '! ', good: '' }[state];
  document.title = `${failure ? '✕ no answer' : `${mark}${lost}`} · kube-audit-forwarder`;
}
