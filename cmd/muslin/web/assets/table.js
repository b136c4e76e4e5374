// The table of the peers: all that the picture says, and more. One row's button is in the order of Tab, and the arrow keys
// move to the others: with 500 peers nobody wants to pass each.

import { h, set, text } from './dom.js';
import { NAMES, STATES } from './model.js';
import { symbol } from './picture.js';
import { ago, bits, percent, roundTrip, short, since } from './words.js';

// How often rows may move by themselves, in ms, when they are sorted by what changes all the time. They do not while a
// person is at them.
const RESORT = 4000;

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
    this.rows = new Map(); // by subnet
    this.by = COLUMNS[2];
    this.reversed = false;
    this.sortedAt = 0;
    this.shown = [];
    this.heads = COLUMNS.map((c) => h('th', { scope: 'col', class: `${c.id}${c.right ? ' right' : ''}${c.narrow ? '' : ' wide'}` },
      h('button', { type: 'button', onclick: () => this.sortBy(c) }, c.title, h('span', { class: 'arrow', 'aria-hidden': 'true' }))));
    this.body = h('tbody', { onkeydown: (e) => this.key(e), onclick: (e) => this.click(e) });
    this.none = h('p', { class: 'none muted', hidden: true });
    parent.append(h('table', null, h('caption', { class: 'quiet' }, 'Peers. Buttons in the head sort. Arrow keys move between rows, Enter shows the details.'),
      h('thead', null, h('tr', null, this.heads)), this.body), this.none);
    this.parent = parent;
  }

  sortBy(column) {
    this.reversed = this.by === column && !this.reversed;
    this.by = column;
    this.sort(true);
  }

  update(network, peers, selected, empty) {
    const other = peers.length !== this.shown.length || network !== this.network || peers.some((p) => !this.set?.has(p));
    if (network !== this.network) this.rows.clear();
    this.network = network;
    this.peers = peers;
    this.selected = selected;
    if (other) this.set = new Set(peers);
    for (const [subnet, row] of this.rows) {
      if (network.peers.get(subnet) !== row.peer) this.rows.delete(subnet);
    }
    for (const p of peers) this.fill(p);
    this.sort(other);
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

  // sort brings the rows into their order, if they are not: at once, or when it is time.
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
    const focused = this.body.contains(document.activeElement) ? document.activeElement : null;
    this.body.replaceChildren(...shown.map((p) => this.row(p).tr));
    if (focused?.isConnected) focused.focus({ preventScroll: true });
    this.settle();
  }

  // settle has one button in the order of Tab.
  settle(button) {
    const all = this.shown.map((p) => this.row(p).button);
    button ??= all.find((b) => b.tabIndex === 0) ?? (this.selected && this.rows.get(this.selected.subnet)?.button);
    if (!all.includes(button)) button = all[0];
    for (const b of all) if (b.tabIndex !== (b === button ? 0 : -1)) b.tabIndex = b === button ? 0 : -1;
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const subnet = event.target.closest('tr')?.dataset.subnet;
    const i = this.shown.findIndex((p) => p.subnet === subnet), last = this.shown.length - 1;
    const to = { ArrowDown: i + 1, ArrowUp: i - 1, PageDown: i + 15, PageUp: i - 15, Home: 0, End: last }[event.key];
    if (to === undefined || i < 0) return;
    event.preventDefault();
    const { button } = this.row(this.shown[Math.max(0, Math.min(last, to))]);
    this.settle(button);
    button.focus();
  }

  click(event) {
    const subnet = event.target.closest('tr')?.dataset.subnet;
    if (!subnet || String(getSelection())) return; // text was marked
    this.settle(this.rows.get(subnet).button);
    this.onSelect(this.network.peers.get(subnet));
  }
}
