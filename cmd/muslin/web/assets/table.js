// The table of the peers: all that the picture says, and more. One row's button is in the order of Tab, and the arrow keys
// move to the others: with 500 peers nobody wants to pass each. Of many rows only those that are seen, and some around them, are
// in the page.

import { h, set, text } from './dom.js';
import { NAMES, STATES } from './model.js';
import { symbol } from './picture.js';
import { ago, bits, percent, roundTrip, short, since } from './words.js';

// How often rows may move by themselves, in ms, when they are sorted by what changes all the time. They do not while a
// person is at them.
const RESORT = 4000;

// So many rows are all there, and may be found with the browser's own search. Of more there are those that are seen, with so many
// above and below.
const WHOLE = 200;
const SPARE = 15;

const nothing = (v) => v === null || v === undefined;
const number = (v, worst) => (nothing(v) ? worst : v);

// The columns. sort gives what they are sorted by; first says which end comes first; narrow: there on a small screen, too.
const COLUMNS = [
  { id: 'subnet', title: 'Subnet', sort: (p) => p.order, narrow: true },
  { id: 'address', title: 'Public IP', sort: (p) => p.now.public_ip.split('.').map((n) => n.padStart(3, '0')).join('.'), cell: (p) => p.now.public_ip },
  { id: 'state', title: 'State', sort: (p) => STATES.indexOf(p.state), narrow: true },
  { id: 'way', title: 'Way', sort: (p) => p.now.way, cell: (p) => p.now.way },
  { id: 'rtt', title: 'Round trip', right: true, sort: (p) => number(p.now.rtt_us, -1), first: 'most', cell: (p) => roundTrip(p.now.rtt_us) },
  { id: 'loss', title: 'Loss', right: true, sort: (p) => number(p.now.loss, -1), first: 'most', cell: (p) => percent(p.now.loss) },
  { id: 'mtu', title: 'Path MTU', right: true, sort: (p) => p.now.path_mtu || Infinity, cell: (p) => pathMTU(p.now) },
  { id: 'received', title: 'Received', right: true, narrow: true, sort: (p) => p.rx, first: 'most', moves: true, cell: (p) => bits(p.rx) },
  { id: 'sent', title: 'Sent', right: true, narrow: true, sort: (p) => p.tx, first: 'most', moves: true, cell: (p) => bits(p.tx) },
  { id: 'heard', title: 'Last heard', right: true, sort: (p, now) => since(now, p.now.last_rx) ?? Infinity, moves: true, cell: (p, now) => ago(now, p.now.last_rx) },
];

export function pathMTU(s) {
  if (s.path_mtu) return String(s.path_mtu);
  return { full: 'full', unknown: 'not known' }[s.path_mtu_state] ?? '';
}

export class Table {
  constructor(parent, onSelect) {
    this.onSelect = onSelect;
    this.rows = new Map(); // by subnet: those in the page
    this.by = COLUMNS[2];
    this.reversed = false;
    this.sortedAt = 0;
    this.shown = []; // in their order
    this.from = this.to = 0; // those of them that are in the page
    this.stop = null; // the peer whose button is in the order of Tab
    this.heads = COLUMNS.map((c) => h('th', { scope: 'col', class: `${c.id}${c.right ? ' right' : ''}${c.narrow ? '' : ' wide'}` },
      h('button', { type: 'button', onclick: () => this.sortBy(c) }, c.title, h('span', { class: 'arrow', 'aria-hidden': 'true' }))));
    this.body = h('tbody', { onclick: (e) => this.click(e) });
    this.above = h('tr', { class: 'gap', 'aria-hidden': 'true' }, h('td', { colspan: COLUMNS.length }));
    this.below = this.above.cloneNode(true);
    this.none = h('p', { class: 'none muted', hidden: true });
    this.head = h('thead', null, h('tr', null, this.heads));
    this.table = h('table', null, h('caption', { class: 'quiet' }, 'Peers. Buttons in the head sort. Arrow keys move between rows, Enter shows the details.'),
      this.head, this.body);
    parent.append(this.table, this.none);
    parent.addEventListener('keydown', (e) => this.key(e));
    parent.addEventListener('scroll', () => this.scrolled(), { passive: true });
    new ResizeObserver(() => {
      this.height = 0; // of a row
      this.place();
    }).observe(parent);
    this.parent = parent;
  }

  sortBy(column) {
    this.reversed = this.by === column && !this.reversed;
    this.by = column;
    this.sort(true);
    this.place();
  }

  update(network, peers, selected, empty) {
    const other = peers.length !== this.shown.length || network !== this.network || peers.some((p) => !this.set?.has(p));
    if (network !== this.network) {
      this.rows.clear();
      this.stop = null;
    }
    this.network = network;
    this.peers = peers;
    this.selected = selected;
    if (other) this.set = new Set(peers);
    this.sort(other);
    this.place();
    this.none.hidden = peers.length > 0;
    text(this.none, empty);
  }

  row(peer) {
    let row = this.rows.get(peer.subnet);
    if (row) return row;
    row = { peer, cells: [] };
    row.button = h('button', { type: 'button', tabindex: -1 }, peer.subnet);
    row.tr = h('tr', { 'data-subnet': peer.subnet }, COLUMNS.map((c) => {
      const kind = `${c.id}${c.right ? ' right' : ''}${c.narrow ? '' : ' wide'}`;
      if (c.id === 'subnet') return h('th', { scope: 'row', class: kind }, row.button, row.small = h('span', { class: 'small muted' }));
      if (c.id === 'state') return h('td', { class: kind }, row.symbol = h('span'), row.words = h('span'));
      const cell = document.createTextNode('');
      row.cells.push([c, cell]);
      return h('td', { class: kind }, cell);
    }));
    this.rows.set(peer.subnet, row);
    return row;
  }

  fill(peer) {
    const row = this.row(peer), now = this.network.time;
    for (const [c, cell] of row.cells) {
      const value = c.cell(peer, now);
      if (cell.data !== value) cell.data = value;
    }
    text(row.small, peer.now.public_ip);
    if (row.state !== peer.state) {
      row.state = peer.state;
      row.symbol.replaceChildren(symbol(peer.state));
      row.tr.className = peer.state;
    }
    const down = peer.state === 'down' && since(now, peer.now.down_since);
    text(row.words, NAMES[peer.state] + (down ? ` for ${short(down)}` : ''));
    set(row.tr, 'aria-current', peer === this.selected ? 'true' : null);
  }

  // sort finds the order of the rows: at once, or when it is time.
  sort(now) {
    const states = this.peers.map((p) => p.state).join();
    const due = this.by.moves ? Date.now() - this.sortedAt > RESORT && !this.parent.matches(':hover, :focus-within') : states !== this.states;
    if (!now && !due) return;
    this.states = states;
    this.sortedAt = Date.now();
    const { by, network } = this;
    const sign = this.reversed === (by.first === 'most') ? 1 : -1;
    const keyed = this.peers.map((p) => [by.sort(p, network.time), p]);
    keyed.sort(([a, p], [b, q]) => (a < b ? -sign : a > b ? sign : p.order < q.order ? -1 : 1));
    const shown = keyed.map(([, p]) => p);
    COLUMNS.forEach((c, i) => {
      set(this.heads[i], 'aria-sort', c === by ? (sign > 0 ? 'ascending' : 'descending') : null);
    });
    if (shown.length === this.shown.length && shown.every((p, i) => p === this.shown[i])) return;
    this.shown = shown;
  }

  // span is which rows are to be in the page.
  span() {
    const n = this.shown.length;
    if (n <= WHOLE) return [0, n];
    if (!this.height) this.measure();
    const { height, parent } = this;
    const first = Math.floor(parent.scrollTop / height), fit = Math.ceil(parent.clientHeight / height);
    return [Math.max(0, Math.min(first, n - fit) - SPARE), Math.min(n, first + fit + SPARE)];
  }

  // measure finds out how high a row is. All are alike where not all are there (style.css).
  measure() {
    set(this.parent, 'data-many', true);
    const row = this.row(this.shown[0]);
    if (!row.tr.isConnected) this.body.replaceChildren(row.tr);
    this.height = row.tr.getBoundingClientRect().height || 30;
    this.from = this.to = -1;
  }

  // place has the rows in the page that are to be there, in their order, with what they say now.
  place() {
    if (!this.network) return;
    const [from, to] = this.span(), n = this.shown.length, many = n > WHOLE;
    set(this.parent, 'data-many', many);
    set(this.table, 'aria-rowcount', many ? n + 1 : null);
    const here = this.shown.slice(from, to);
    const wanted = new Set(here);
    for (const [subnet, row] of this.rows) if (!wanted.has(row.peer)) this.rows.delete(subnet);
    here.forEach((p, i) => {
      this.fill(p);
      set(this.row(p).tr, 'aria-rowindex', many ? from + i + 2 : null);
    });
    const rows = here.map((p) => this.row(p).tr);
    if (many) {
      this.above.firstChild.style.height = `${from * this.height}px`;
      this.below.firstChild.style.height = `${(n - to) * this.height}px`;
      rows.unshift(this.above);
      rows.push(this.below);
    }
    [this.from, this.to] = [from, to];
    if (rows.length !== this.body.childNodes.length || rows.some((tr, i) => tr !== this.body.childNodes[i])) {
      const focused = this.body.contains(document.activeElement) ? document.activeElement : null;
      this.body.replaceChildren(...rows);
      if (focused) (focused.isConnected ? focused : this.parent).focus({ preventScroll: true });
    }
    this.settle();
  }

  scrolled() {
    if (this.shown.length <= WHOLE || this.waits) return;
    this.waits = requestAnimationFrame(() => {
      this.waits = 0;
      const [from, to] = this.span();
      if (from !== this.from || to !== this.to) this.place();
    });
  }

  // seen are the subnets of the rows on the screen.
  seen() {
    const box = this.parent.getBoundingClientRect(), top = Math.max(0, box.top), bottom = Math.min(innerHeight, box.bottom);
    return this.shown.slice(this.from, this.to).filter((p) => {
      const r = this.rows.get(p.subnet)?.tr.getBoundingClientRect();
      return r && r.bottom > top && r.top < bottom;
    }).map((p) => p.subnet);
  }

  // settle has one button in the order of Tab.
  settle() {
    const here = this.shown.slice(this.from, this.to);
    let stop = this.stop;
    if (!stop || !here.includes(stop)) stop = here.includes(this.selected) ? this.selected : here[0];
    for (const p of here) {
      const { button } = this.row(p), index = p === stop ? 0 : -1;
      if (button.tabIndex !== index) button.tabIndex = index;
    }
  }

  // goTo has the focus on a row.
  goTo(i) {
    this.stop = this.shown[i];
    if (this.shown.length > WHOLE) {
      const { parent, height } = this, y = i * height, room = parent.clientHeight - this.head.offsetHeight;
      if (y < parent.scrollTop) parent.scrollTop = y;
      else if (y + height > parent.scrollTop + room) parent.scrollTop = y + height - room;
      this.place();
    }
    this.settle();
    this.row(this.stop).button.focus();
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || this.head.contains(event.target)) return;
    const subnet = event.target.closest('tr')?.dataset.subnet ?? this.stop?.subnet;
    const i = this.shown.findIndex((p) => p.subnet === subnet), last = this.shown.length - 1;
    const to = { ArrowDown: i + 1, ArrowUp: i - 1, PageDown: i + 15, PageUp: i - 15, Home: 0, End: last }[event.key];
    if (to === undefined || i < 0) return;
    event.preventDefault();
    this.goTo(Math.max(0, Math.min(last, to)));
  }

  click(event) {
    const subnet = event.target.closest('tr')?.dataset.subnet;
    if (!subnet || String(getSelection())) return; // text was marked
    this.stop = this.network.peers.get(subnet);
    this.settle();
    this.onSelect(this.stop);
  }
}
