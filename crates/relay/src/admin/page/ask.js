// --- Asking the relay --------------------------------------------------------------------------

// In milliseconds: the time between two questions, the same for a hidden page, and the longest wait
// for an answer.
const EVERY = 2000, EVERY_HIDDEN = 15000, PATIENCE = 5000;

let answer = null;        // the last answer of /status
let answeredAt = 0;       // when it came, by performance.now()
let answeredTime = null;  // when it came, by the clock
let failure = null;       // why the last question has no answer
let token = '';           // the bearer token: here alone, and gone when the page is
let locked = null;        // why the token does not open the relay
let asking = false;
let timer;

function draw() {
  const silence = (performance.now() - answeredAt) / 1000;
  show(at('gone'), failure !== null);
  show(at('locked'), locked !== null);
  if (locked) say(at('locked-words'), locked);
  if (failure) {
    const last = () => `Its last answer, which this page shows, came at ${clock(answeredTime)}.`;
    say(at('gone-words'), answer ? last() : failure);
    say(at('gone-since'), answer ? `That was ${ago(silence)} (${failure}).`
      : `This page has been asking for ${duration(silence)}.`);
  }
  at('main').toggleAttribute('data-stale', failure !== null);
  show(at('main'), answer !== null);
  if (!answer) {
    document.title = `${locked ? 'locked' : 'no answer'} · kube-audit-forwarder`;
    return;
  }
  // Ages do not grow while the relay is gone: nobody knows what has happened since.
  const elapsed = failure ? 0 : silence;
  const { host, version, uptime_seconds: uptime } = answer;
  say(at('facts'), `${host} · version ${version} · up ${duration(uptime + elapsed)}`);
  say(at('updated'), `answered at ${clock(answeredTime)}`);
  drawVerdict(answer, elapsed);
  drawSigns(answer, elapsed);
  drawFlow(answer, elapsed);
  drawOutputs(answer, elapsed);
  drawInputs(answer);
  drawQueueFacts(answer, elapsed);
  drawRejected(answer, elapsed);
  drawCertificates(answer);
  drawEvidence(answer, elapsed);
  drawProcess(answer, elapsed);
}

async function question(path) {
  const headers = token ? { Authorization: `bearer ${token}` } : {};
  const signal = AbortSignal.timeout(PATIENCE);
  const response = await fetch(path, { headers, cache: 'no-store', redirect: 'error', signal });
  if (response.status === 401) {
    const why = (await response.text()).trim();
    throw Object.assign(new Error(why), { name: 'Locked' });
  }
  if (!response.ok) throw new Error(`it answered ${response.status}`);
  return response.json();
}

// Asks for the history, and for the volume, once a step has passed. Without an answer the charts
// stay as they are; the question to /status tells whether the relay is there.
let historyDue = 0;
async function askHistory() {
  if (performance.now() < historyDue) return;
  historyDue = performance.now() + 10000;
  try {
    keep(await question('status/history'));
    drawCharts();
    volume = await question('status/volume');
    drawVolume();
  } catch {
    historyDue = 0;
  }
}

async function ask() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  try {
    const status = await question('status');
    if (answer && answer.start_time_seconds !== status.start_time_seconds) historyDue = 0;
    if (answer) compare(answer, status);
    [answer, answeredAt, answeredTime, failure] = [status, performance.now(), new Date(), null];
    locked = null;
  } catch (error) {
    if (error.name === 'Locked') return lock(error.message);
    failure = error.name === 'TimeoutError' ? 'no answer in time' : error.message || String(error);
  }
  draw();
  if (!failure) await askHistory();
  asking = false;
  timer = setTimeout(ask, document.hidden ? EVERY_HIDDEN : EVERY);
}

// Shows nothing of the relay any more, and asks it nothing until somebody gives a token. Only a token
// that was refused is an error.
function lock(why) {
  set(at('locked-words'), 'data-state', token ? 'bad' : 'good');
  const words = `${token ? 'Refused' : 'This relay asks for a token'}: ${why}.`;
  [answer, failure, locked, asking] = [null, null, words, false];
  draw();
  at('token').focus();
}

at('locked').addEventListener('submit', (event) => {
  event.preventDefault();
  token = at('token').value.trim();
  at('token').value = '';
  ask();
});

// Sets the span of the charts, and stores it for a reload of the page if the browser can.
function chooseSpan(seconds) {
  span = seconds;
  drawCharts();
  try {
    sessionStorage.setItem('span', seconds);
  } catch {
    // A browser that stores nothing shows one hour after a reload.
  }
}

function storedSpan() {
  try {
    return Number(sessionStorage.getItem('span'));
  } catch {
    return 0;
  }
}

for (const button of at('spans').querySelectorAll('input')) {
  if (Number(button.value) === storedSpan()) button.checked = true;
  if (button.checked) span = Number(button.value);
  button.addEventListener('change', () => chooseSpan(Number(button.value)));
}
setRoles(at('main'));
makeCharts();
document.addEventListener('visibilitychange', () => {
  if (!document.hidden && !locked) ask();
});
setInterval(() => {
  if (!document.hidden && (answer || failure)) draw();
}, 1000);
ask();
