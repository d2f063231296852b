// --- Who sends the bytes -----------------------------------------------------------------------

let volume = null;  // the last answer of /status/volume

// An estimate with its error: "12 MiB ± 1.0 MiB". Without an error it is exact.
function estimate(value, error, words) {
  return error > 0 ? `${words(value)} ± ${words(error, value)}` : words(value);
}

function drawVolume() {
  const [by, unit, span] = ['by', 'unit', 'span'].map((it) => at(`volume-${it}`).value);
  const all = volume?.[span];
  show(at('volume'), Boolean(all));
  if (!all) return;
  say(at('volume-words'), `last ${duration(all.seconds)} · ${bytes(all.bytes)} · ${
    events(all.events)}`);
  const rows = [...all.by[by].rows].sort((a, b) => b[unit] - a[unit]).slice(0, 10);
  list(at('volume-rows'), 'heavy', rows, (it) => it.name.join('\n'), (node, it) => {
    const share = all[unit] > 0 ? it[unit] / all[unit] : 0;
    sayName(part(node, 'name'), it.name.map((one) => one || '–').join(' · '));
    say(part(node, 'share'), percent(100 * share));
    fillBar(part(node, 'bar'), share, 'good');
    say(part(node, 'bytes'), estimate(it.bytes, it.bytes_error, bytes));
    say(part(node, 'events'), estimate(it.events, it.events_error, figure));
  });
}

for (const name of ['by', 'unit', 'span']) {
  at(`volume-${name}`).addEventListener('change', drawVolume);
}
