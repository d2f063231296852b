// --- Nodes: how the page is written ------------------------------------------------------------

function at(id) {
  return document.getElementById(id);
}

// The part of a template's node that has this name. Parts are looked up once for each node.
const parts = new WeakMap();
function part(node, name) {
  let known = parts.get(node);
  if (!known) {
    known = new Map();
    parts.set(node, known);
  }
  if (!known.has(name)) known.set(name, node.querySelector(`[data-is="${name}"]`));
  return known.get(name);
}

// Writes a text; what stands between backticks becomes code, and a number stays on one line with its
// unit. Only changes are written: a selection stays, and nothing is read aloud twice.
function say(node, text) {
  const pieces = text.replace(/(\d) (?=[a-z%×])| (?=·)/gi, '$1\u00a0').split('`');
  if (node.textContent === pieces.join('')) return;
  node.replaceChildren(...pieces.map((it, index) => {
    if (index % 2 === 0 || index === pieces.length - 1) return it;
    const code = document.createElement('code');
    code.textContent = it;
    return code;
  }));
}

// Writes a name that somebody else has chosen, as it is.
function sayName(node, name) {
  if (node.textContent !== name) node.textContent = name;
}

function set(node, name, value) {
  if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

function show(node, visible) {
  node.toggleAttribute('hidden', !visible);
}

// Style turns the rows of tables into blocks on a phone. The roles keep them tables for readers of
// screens.
const ROLES = { TABLE: 'table', THEAD: 'rowgroup', TBODY: 'rowgroup', TR: 'row', TD: 'cell' };
function setRoles(root) {
  for (const it of [root, ...root.querySelectorAll('table, thead, tbody, tr, th, td')]) {
    const header = it.scope === 'col' ? 'columnheader' : 'rowheader';
    const role = it.tagName === 'TH' ? header : ROLES[it.tagName];
    if (role) set(it, 'role', role);
  }
  return root;
}

function clone(template) {
  return setRoles(at(template).content.firstElementChild.cloneNode(true));
}

// Keeps one node of a template for each item, for as long as its key is there. Children that have
// no key, such as the head of a table, stay first.
function list(parent, template, items, key, fill) {
  const before = new Map();
  let index = 0;
  for (const node of parent.children) {
    const name = node.getAttribute('data-key');
    if (name === null) index += 1;
    else before.set(name, node);
  }
  const focused = document.activeElement;
  const uses = new Map();
  for (const item of items) {
    // Two items may have the same key. The number of earlier items with the key tells them apart,
    // so that each keeps its node.
    const own = key(item);
    const use = uses.get(own) || 0;
    uses.set(own, use + 1);
    const name = JSON.stringify([own, use]);
    const node = before.get(name) || clone(template);
    before.delete(name);
    set(node, 'data-key', name);
    if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] || null);
    index += 1;
    fill(node, item);
  }
  before.forEach((node) => node.remove());
  // A node that moves loses the focus.
  if (focused && focused !== document.activeElement && parent.contains(focused)) {
    focused.focus({ preventScroll: true });
  }
}

// Rows of a name and a value. A row without a value is left out.
function facts(parent, rows) {
  const some = rows.filter(([, value]) => value);
  list(parent, 'fact', some, ([name]) => name, (node, [name, value, state]) => {
    say(part(node, 'name'), name);
    say(part(node, 'value'), value);
    set(part(node, 'value'), 'data-state', state || 'good');
  });
}

function fillBar(bar, fill, state) {
  const percent = Math.min(100, Math.max(0, fill * 100));
  set(bar.firstElementChild, 'width', percent > 0 ? Math.max(percent, 0.5) : 0);
  set(bar, 'aria-valuenow', Math.round(percent));
  set(bar, 'data-state', state);
}
