// --- Charts: lines over time with axes, and values under the pointer ---------------------------

const SVG = 'http://www.w3.org/2000/svg';
const STEPS = {
  seconds: [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 43200],
  clock: [10, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600],
};

let span = 3600;     // the most seconds that the charts show
let cursor = null;   // the time under the pointer, in seconds since 1970, the same in all charts
let pointer = null;  // the chart and the place of the mouse or finger
const charts = new Set();

// The distance between ticks at which about `wanted` ticks reach `top`.
function step(top, wanted, scale) {
  const rough = top / wanted;
  if (scale === 'seconds' || scale === 'clock') {
    const known = STEPS[scale].find((it) => it >= rough);
    return known || Math.ceil(rough / DAY) * DAY;
  }
  if (scale === 'bytes') return 2 ** Math.max(0, Math.ceil(Math.log2(rough)));
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 2.5, 5, 10].find((it) => it * power >= rough * 0.999);
}

const AXIS = {
  count: brief,
  bytes: (value) => bytes(value).replace('.0 ', ' '),
  seconds: (value) => duration(value, true),
};

const VALUE = {
  count: scaled,
  bytes,
  seconds: (value) => (value < 1 ? delay(value) : duration(value)),
};

const SMALLEST = { count: 1, bytes: 1024, seconds: 1 };

// The seconds that the charts show: only minutes soon after a start, because an hour that is nearly
// empty would show nothing.
const SPAN_MIN = 300;
function shownSpan() {
  const known = lines.times.at(-1) - lines.times[0];
  return Math.min(span, Math.max(SPAN_MIN, Math.ceil(known / 60) * 60));
}

function shape(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

class Chart {
  // `series`: name, `kind` of the line (flow, warn, bad), and `read`: one value for each time.
  constructor(parent, { title, scale, unit, series, untitled = false }) {
    Object.assign(this, { title, scale, unit, series, width: 0, height: 0, shown: null });
    this.node = clone('chart');
    this.svg = this.node.querySelector('svg');
    say(part(this.node, 'title'), untitled ? '' : title);
    for (const it of series) {
      it.path = part(this.node, 'lines').appendChild(shape('path', { class: `line ${it.kind}` }));
      it.dot = part(this.node, 'cross').appendChild(shape('circle', { r: 3, class: it.kind }));
      it.key = part(this.node, 'keys').appendChild(clone('key'));
      it.key.firstElementChild.className = it.kind;
      say(part(it.key, 'name'), it.name);
    }
    this.svg.addEventListener('pointermove', (event) => this.point(event));
    this.svg.addEventListener('pointerdown', (event) => this.point(event));
    this.svg.addEventListener('pointerleave', (event) => {
      if (event.pointerType === 'mouse') move(null, null);
    });
    this.svg.addEventListener('keydown', (event) => this.key(event));
    // The keyboard begins at the newest point; a mouse or a finger has a place of its own.
    this.svg.addEventListener('focus', () => {
      const byKey = this.svg.matches(':focus-visible');
      if (cursor === null && this.shown && byKey) move(this.shown.times.at(-1), null);
    });
    this.svg.addEventListener('blur', () => {
      if (!pointer) move(null, null);
    });
    parent.append(this.node);
    charts.add(this);
    this.sizes = new ResizeObserver(([{ contentRect: { width, height } }]) => {
      [this.width, this.height] = [Math.floor(width), Math.floor(height)];
      this.draw();
    });
    this.sizes.observe(this.svg);
  }

  end() {
    this.sizes.disconnect();
    charts.delete(this);
    this.node.remove();
  }

  point(event) {
    if (!this.shown) return;
    pointer = { chart: this, x: event.offsetX };
    move(this.timeAt(event.offsetX), pointer);
  }

  timeAt(x) {
    const { left, right, from, until } = this.shown;
    return from + ((x - left) / Math.max(1, right - left)) * (until - from);
  }

  key(event) {
    if (!this.shown) return;
    const { times } = this.shown;
    const now = cursor === null ? times.length - 1 : this.nearest();
    const target = {
      ArrowLeft: now - 1, ArrowRight: now + 1, ArrowDown: now - 1, ArrowUp: now + 1,
      PageDown: now - 6, PageUp: now + 6, Home: 0, End: times.length - 1,
    }[event.key];
    if (event.key === 'Escape') move(null, null);
    if (target === undefined) return;
    event.preventDefault();
    move(times[Math.min(times.length - 1, Math.max(0, target))], null);
  }

  // The index of the point nearest to the cursor.
  nearest() {
    const { times } = this.shown;
    let best = 0;
    for (let index = 1; index < times.length; index += 1) {
      if (Math.abs(times[index] - cursor) <= Math.abs(times[best] - cursor)) best = index;
    }
    return best;
  }

  draw() {
    const some = lines && lines.times.length > 0;
    show(part(this.node, 'empty'), !some);
    this.svg.classList.toggle('unseen', !some);
    if (!some || this.width === 0) return;
    const until = lines.times.at(-1);
    const span = shownSpan();
    const from = until - span;
    const first = lines.times.findIndex((it) => it >= from);
    const times = lines.times.slice(first);
    const values = this.series.map((it) => it.read().slice(first));
    const peak = values.reduce((most, column) => column.reduce((a, b) => (b > a ? b : a), most), 0);
    const size = step(Math.max(SMALLEST[this.scale], peak), this.height < 90 ? 2 : 3, this.scale);
    const ticks = Math.max(1, Math.ceil(Math.max(SMALLEST[this.scale], peak) / size));
    const highest = size * ticks;
    const labels = Array.from({ length: ticks + 1 },
      (_, index) => `${AXIS[this.scale](size * index)}${index > 0 ? this.unit : ''}`);
    const left = 10 + 6.2 * Math.max(...labels.map((it) => it.length));
    const [right, high, low] = [this.width - 10, 8, this.height - 18];
    this.shown = { times, values, from, until, left, right, high, low, highest };
    const x = (time) => left + ((time - from) / span) * (right - left);
    const y = (value) => low - (value / highest) * (low - high);
    Object.assign(this.shown, { x, y });

    const grid = [];
    labels.forEach((label, index) => {
      const place = y(size * index);
      grid.push(shape('line', { x1: left, x2: right, y1: place, y2: place }));
      const text = shape('text', { x: left - 6, y: place + 3.5, 'text-anchor': 'end' });
      text.textContent = label;
      grid.push(text);
    });
    const offset = new Date(until * 1000).getTimezoneOffset() * 60;
    const every = step(span, Math.max(2, Math.min(6, Math.floor((right - left) / 56))), 'clock');
    const earliest = Math.ceil((from - offset) / every) * every + offset;
    for (let time = earliest; time <= until; time += every) {
      const place = x(time);
      grid.push(shape('line', { x1: place, x2: place, y1: low, y2: low + 4 }));
      if (place < left + 12 || place > this.width - 15) continue;
      const text = shape('text', { x: place, y: low + 15, 'text-anchor': 'middle' });
      text.textContent = clock(new Date(time * 1000)).slice(0, every < 60 ? 8 : 5);
      grid.push(text);
    }
    part(this.node, 'grid').replaceChildren(...grid);

    const marks = lines.marks.filter((it) => it.time >= from && it.time <= until);
    let free = 0;
    part(this.node, 'marks').replaceChildren(...marks.flatMap(({ time, kind }) => {
      const place = x(time);
      const line = shape('line', { class: kind, x1: place, x2: place, y1: high - 4, y2: low });
      if (place < free) return [line];
      const [anchor, beside] = place > right - 44 ? ['end', -3] : ['start', 3];
      if (anchor === 'end' && place - 44 < free) return [line];
      const text = shape('text', { x: place + beside, y: high + 4, 'text-anchor': anchor });
      text.textContent = kind;
      free = place + 44;
      return [line, text];
    }));

    // What is zero throughout has no line in the colour of trouble.
    this.series.forEach((it, number) => {
      const isQuiet = it.kind !== 'flow' && !values[number].some(Boolean);
      set(it.path, 'd', isQuiet ? '' : this.path(values[number]));
    });
    if (pointer && pointer.chart === this) cursor = this.timeAt(pointer.x);
    this.cross();
  }

  // A line with a gap wherever a value is unknown, or no point was made for some time.
  path(values) {
    const { times, x, y } = this.shown;
    let [d, open] = ['', false];
    values.forEach((value, index) => {
      if (value === null || value === undefined) {
        open = false;
        return;
      }
      const gap = index > 0 && times[index] - times[index - 1] > 2.5 * lines.interval;
      const place = `${x(times[index]).toFixed(1)} ${y(value).toFixed(1)}`;
      // A point that stands alone is drawn as a dot, by a line of no length with round ends.
      d += open && !gap ? `L${place}` : `M${place}h0`;
      open = true;
    });
    return d;
  }

  // The cross-hair, and the values at it. Without one: the highest value of the span.
  cross() {
    if (!this.shown) return;
    const { times, values, x, y, high, low } = this.shown;
    const on = cursor !== null;
    const index = on ? this.nearest() : times.length - 1;
    const cross = part(this.node, 'cross');
    cross.classList.toggle('unseen', !on);
    this.node.classList.toggle('pointed', on);
    const known = (value) => value !== null && value !== undefined;
    const exact = VALUE[this.scale];
    const written = (value) => (known(value) ? `${exact(value)}${this.unit}` : 'unknown');
    const most = (column) => column.reduce((a, b) => (a === null || b > a ? b : a), null);
    this.series.forEach((it, number) => {
      const value = on ? values[number][index] : most(values[number]);
      say(part(it.key, 'value'), on || !known(value) ? written(value)
        : `max ${AXIS[this.scale](value)}${this.unit}`);
      it.dot.classList.toggle('unseen', !on || !known(value));
      if (!on || !known(value)) return;
      set(it.dot, 'cx', x(times[index]).toFixed(1));
      set(it.dot, 'cy', y(value).toFixed(1));
    });
    const near = lines.marks.filter((it) => Math.abs(it.time - times[index]) <= lines.interval / 2);
    const what = near.length > 0 ? ` (${near.map((it) => it.kind).join(', ')})` : '';
    const time = `${clock(new Date(times[index] * 1000))}${what}`;
    if (on) {
      const place = x(times[index]);
      const [line, back, text] = cross.children;
      say(text, time);
      const wide = 6.6 * time.length + 8;
      const middle = Math.min(this.width - wide / 2, Math.max(wide / 2, place));
      set(line, 'x1', place.toFixed(1));
      set(line, 'x2', place.toFixed(1));
      set(line, 'y1', high);
      set(line, 'y2', low);
      set(text, 'x', middle.toFixed(1));
      set(text, 'y', low + 14);
      set(back, 'x', (middle - wide / 2).toFixed(1));
      set(back, 'width', wide.toFixed(1));
      set(back, 'y', low + 3);
    }
    const all = this.series.map((it, number) => `${it.name} ${written(values[number][index])}`);
    set(this.svg, 'aria-label', `${this.title}, the last ${duration(shownSpan())}`);
    set(this.svg, 'aria-valuemin', 0);
    set(this.svg, 'aria-valuemax', times.length - 1);
    set(this.svg, 'aria-valuenow', index);
    set(this.svg, 'aria-valuetext', `${time}: ${all.join(', ')}`);
  }
}

// Moves the cross-hair of all charts.
function move(time, from) {
  pointer = from;
  cursor = time;
  charts.forEach((chart) => chart.cross());
}

function drawCharts() {
  charts.forEach((chart) => chart.draw());
}

// A finger that touches anything else takes the cross-hair away.
document.addEventListener('pointerdown', (event) => {
  if (cursor !== null && !event.target.closest('svg[role=slider]')) move(null, null);
});
