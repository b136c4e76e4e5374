// The picture: this node in the middle, its peers around it in the order of their subnets. A link's line says how the peer
// is, by its pattern as well as its colour, and its width how much goes over it. For the keyboard and screen readers it is
// one list with a cursor (aria-activedescendant).

import { svg, set, text, byId } from './dom.js';
import { NAMES } from './model.js';
import { bits } from './words.js';

// Shapes, of about 10 px around 0,0, told apart without colour.
export const SHAPES = {
  up: 'M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z',
  down: 'M-5 -5L5 5M5 -5L-5 5',
  loss: 'M0 -5.5L5.5 4.5L-5.5 4.5Z',
  unknown: 'M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0Z',
};

export const symbol = (state) => svg('svg', { class: `symbol ${state}`, viewBox: '-7 -7 14 14', width: 14, height: 14, 'aria-hidden': 'true', focusable: 'false' },
  svg('path', { d: SHAPES[state] }));

const HUB = 54; // px, around this node
const SPACE = 13; // px that a shape wants on its ring
const MAX_ROWS = 7;
const DIAL = 0.52; // of the ring
const NAMED = 26; // so many peers have their names beside them, room permitting
const CROWD = 90; // from so many on, the links of peers that are well begin halfway, and leave the middle to the others
const NAMED_DOWN = 14; // so many that are down have theirs in any case

// From so many on all peers of a state are one shape, and their links another: a browser moves a few shapes, not ten thousand. Over
// them, by themselves, are the peer at the cursor, the chosen one, and so many of those with the most traffic.
const MANY = 800;
const BUSIEST = 100;
const MANY_ROWS = 16;

// outline is a peer's shape as a part of a larger one.
function outline(state, x, y, r) {
  const [cx, cy] = [x.toFixed(1), y.toFixed(1)];
  switch (state) {
    case 'down': return `M${cx} ${cy}m-5-5l10 10m0-10l-10 10`;
    case 'loss': return `M${cx} ${cy}m0-5.5l5.5 10h-11Z`;
    default: return `M${cx} ${cy}m${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;
  }
}

// width of a link, in px: a pixel for each power of ten above 1 kb/s.
export function width(rate, most) {
  if (rate <= 0) return 1;
  return Math.min(most, 1.5 + Math.max(0, Math.log10(rate * 8) - 3));
}

export class Picture {
  constructor(parent, onSelect) {
    this.onSelect = onSelect;
    this.links = svg('g', { 'aria-hidden': 'true' });
    this.bulk = svg('g', { class: 'bulk', 'aria-hidden': 'true' }, ['unknown', 'up', 'loss', 'down'].map((state) => [
      svg('path', { class: `link ${state}`, 'data-of': `link ${state}` }), svg('path', { class: `node ${state}`, 'data-of': `node ${state}` })]).flat());
    this.dial = svg('ellipse', { class: 'dial', 'aria-hidden': 'true' });
    this.nodes = svg('g', { class: 'nodes', role: 'presentation' });
    this.names = svg('g', { class: 'names', 'aria-hidden': 'true' });
    this.cursor = svg('circle', { class: 'cursor', r: 10, 'aria-hidden': 'true' });
    this.chosen = svg('circle', { class: 'chosen', r: 8.5, 'aria-hidden': 'true' });
    this.pointed = svg('text', { class: 'pointed', 'aria-hidden': 'true' });
    this.hub = svg('g', { id: 'hub', class: 'hub', role: 'option', 'aria-selected': 'true', 'aria-label': 'this node' },
      svg('circle', { r: HUB }), this.hubTitle = svg('text', { y: -6, class: 'title' }), ' ', this.hubSubnet = svg('text', { y: 12 }));
    this.svg = svg('svg', { class: 'map', role: 'listbox', tabindex: 0, 'aria-label': 'This node and its peers', 'aria-describedby': 'picture-help',
      'aria-activedescendant': 'hub', onkeydown: (e) => this.key(e), onclick: (e) => this.click(e), onpointermove: (e) => this.point(e),
      onpointerleave: () => this.unpoint(), onfocus: () => this.draw(), onblur: () => this.draw() },
    this.dial, this.bulk, this.links, this.hub, this.nodes, this.names, this.chosen, this.cursor, this.pointed);
    parent.prepend(this.svg);
    this.places = new Map(); // by subnet
    this.list = [];
    this.at = null; // the cursor's peer; null: this node
    new ResizeObserver(() => this.layout()).observe(parent);
    for (const [i, label] of [[0, '1 kb/s'], [3, '1 Mb/s'], [6, '1 Gb/s']]) {
      const x = i * 28;
      byId('widths').append(svg('line', { x1: x + 2, x2: x + 24, y1: 7, y2: 7, 'stroke-width': 1.5 + i, class: 'up' }), svg('text', { x: x + 29, y: 11 }, label));
    }
  }

  // update draws these peers of a network; selected is a peer or null.
  update(network, peers, selected) {
    this.network = network;
    this.selected = selected;
    const other = peers.length !== this.list.length || peers.some((p, i) => p !== this.list[i]);
    this.list = peers;
    if (other) this.layout();
    else this.draw();
  }

  layout() {
    const box = this.svg.getBoundingClientRect();
    if (!box.width) return;
    this.w = box.width;
    this.h = box.height;
    set(this.svg, 'viewBox', `${-this.w / 2} ${-this.h / 2} ${this.w} ${this.h}`);
    const n = this.list.length;
    this.named = n <= NAMED && this.w >= 520;
    this.rx = this.w / 2 - (this.named || this.w >= 520 ? 118 : 16);
    this.ry = this.h / 2 - 24;
    const around = Math.PI * (this.rx + this.ry);
    this.many = n >= MANY;
    const rows = Math.min(this.many ? MANY_ROWS : MAX_ROWS, Math.max(1, Math.ceil((n * SPACE) / around)));
    const depth = Math.min(0.09, (1 - (HUB + 30) / Math.min(this.rx, this.ry)) / rows);
    this.most = Math.max(2.4, Math.min(8, around / Math.max(1, n)));
    this.crowd = n >= CROWD;
    set(this.dial, 'rx', (this.rx * DIAL).toFixed(1));
    set(this.dial, 'ry', (this.ry * DIAL).toFixed(1));
    set(this.dial, 'visibility', this.crowd ? null : 'hidden');
    const old = this.places;
    this.places = new Map();
    this.list.forEach((peer, i) => {
      const angle = (i / n) * 2 * Math.PI - Math.PI / 2;
      const out = 1 - depth * (i % rows);
      const x = this.rx * out * Math.cos(angle), y = this.ry * out * Math.sin(angle);
      const length = Math.hypot(x, y);
      const place = old.get(peer.subnet) ?? { node: null, link: null, name: null };
      old.delete(peer.subnet);
      Object.assign(place, { peer, x, y, length, angle, state: null, bulk: null, index: i });
      this.places.set(peer.subnet, place);
    });
    for (const gone of old.values()) gone.name?.remove();
    this.nodes.replaceChildren();
    this.links.replaceChildren();
    for (const place of this.places.values()) {
      if (place.node) place.node = place.link = null;
      if (!this.many) this.show(place);
    }
    for (const shape of this.bulk.children) set(shape, 'd', null);
    if (this.at && !this.places.has(this.at.subnet)) this.at = null;
    this.draw();
  }

  // show has a peer in the picture by itself.
  show(place) {
    const { peer, x, y, length } = place;
    place.node = svg('path', { role: 'option', id: 'peer-' + peer.subnet, transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`,
      'aria-setsize': this.many ? this.list.length + 1 : null, 'aria-posinset': this.many ? place.index + 2 : null });
    place.link = svg('line', { x2: (x - (x / length) * 5).toFixed(1), y2: (y - (y / length) * 5).toFixed(1) });
    place.state = null;
    this.nodes.append(place.node);
    this.links.append(place.link);
  }

  hide(place) {
    place.node.remove();
    place.link.remove();
    place.node = place.link = null;
  }

  // drawMany draws all of a state as one, where that has changed, and chooses those that are there by themselves.
  drawMany() {
    const all = [...this.places.values()];
    if (all.some((p) => p.bulk !== p.peer.state)) {
      const r = all.length > 2 * MANY ? 2.2 : 3;
      const shapes = {};
      for (const p of all) {
        const { state } = p.peer;
        p.bulk = state;
        const shape = shapes[state] ??= { node: [], link: [] };
        const [x1, y1] = this.begin(p, false);
        shape.node.push(outline(state, p.x, p.y, r));
        shape.link.push(`M${x1} ${y1}L${p.x.toFixed(1)} ${p.y.toFixed(1)}`);
      }
      for (const shape of this.bulk.children) {
        const [kind, state] = shape.dataset.of.split(' ');
        set(shape, 'd', shapes[state]?.[kind].join('') ?? null);
      }
    }
    const alone = new Set(all.filter((p) => p.peer.rate > 0).sort((a, b) => b.peer.rate - a.peer.rate).slice(0, BUSIEST));
    for (const peer of [this.at, this.selected]) if (peer && this.places.has(peer.subnet)) alone.add(this.places.get(peer.subnet));
    for (const p of all) {
      if (alone.has(p) && !p.node) this.show(p);
      else if (!alone.has(p) && p.node) this.hide(p);
    }
  }

  // draw brings everything to the peers' present state. Most of it is as it was.
  draw() {
    if (!this.network) return;
    const node = this.network.view.status?.node ?? {};
    text(this.hubTitle, node.public_ip || node.public_ipv6 || 'this node');
    text(this.hubSubnet, node.subnet || node.subnet_ipv6 || 'no lease yet');
    set(this.hub, 'aria-label', `${this.hubTitle.textContent} ${this.hubSubnet.textContent}, this node`);
    set(this.hub, 'aria-selected', this.selected ? 'false' : 'true');
    if (this.many) this.drawMany();
    let named = 0;
    for (const place of this.places.values()) {
      const { peer, node, link } = place;
      const isSelected = peer === this.selected;
      this.name(place, this.named || isSelected || (peer.state === 'down' && this.w >= 520 && ++named <= NAMED_DOWN));
      if (!node) continue;
      if (place.state !== peer.state) {
        place.state = peer.state;
        set(node, 'class', `node ${peer.state}`);
        set(node, 'd', SHAPES[peer.state]);
        set(node, 'aria-label', `${peer.name}, ${NAMES[peer.state]}`);
        if (peer.state === 'down' || peer.state === 'loss') this.links.append(link); // on top
        this.start(place, isSelected);
      }
      if (place.selected !== isSelected) this.start(place, isSelected);
      set(node, 'aria-selected', isSelected ? 'true' : 'false');
      set(link, 'class', `link ${peer.state}${isSelected ? ' selected' : ''}${peer.rate > 0 ? ' busy' : ''}`);
      set(link, 'stroke-width', (peer.state === 'down' ? Math.min(2, this.most) : width(peer.rate, this.most)).toFixed(1));
    }
    const focused = document.activeElement === this.svg;
    this.mark(this.cursor, focused ? this.at : undefined, HUB + 5, 10);
    this.mark(this.chosen, this.selected, HUB, 8.5);
    set(this.svg, 'aria-activedescendant', this.at ? 'peer-' + this.at.subnet : 'hub');
  }

  // start is where a link begins.
  start(place, isSelected) {
    place.selected = isSelected;
    const [x1, y1] = this.begin(place, isSelected);
    set(place.link, 'x1', x1);
    set(place.link, 'y1', y1);
  }

  begin({ x, y, length, angle, peer }, isSelected) {
    const halfway = this.crowd && !isSelected && (peer.state === 'up' || peer.state === 'unknown');
    return [halfway ? this.rx * DIAL * Math.cos(angle) : (x / length) * HUB, halfway ? this.ry * DIAL * Math.sin(angle) : (y / length) * HUB].map((n) => n.toFixed(1));
  }

  // mark puts a ring around a peer, or around this node (null), or nowhere (undefined).
  mark(ring, peer, hub, small) {
    const place = peer ? this.places.get(peer.subnet) : { x: 0, y: 0 };
    set(ring, 'visibility', peer === undefined || !place ? 'hidden' : null);
    if (!place) return;
    set(ring, 'cx', place.x.toFixed(1));
    set(ring, 'cy', place.y.toFixed(1));
    set(ring, 'r', peer ? small : hub);
  }

  name(place, wanted) {
    if (!wanted) {
      place.name?.remove();
      place.name = null;
      return;
    }
    if (!place.name) this.names.append(place.name = svg('text'));
    text(place.name, place.peer.subnet);
    this.beside(place.name, place);
    set(place.name, 'class', place.peer.state);
  }

  // beside puts a text outside of a place, on its own side of the picture.
  beside(label, { x, y }) {
    const right = x > 1, middle = Math.abs(x) < this.rx * 0.12;
    set(label, 'text-anchor', middle ? 'middle' : right ? 'start' : 'end');
    set(label, 'x', (middle ? x : x + (right ? 11 : -11)).toFixed(1));
    set(label, 'y', (middle ? y + (y > 0 ? 19 : -11) : y + 4).toFixed(1));
  }

  nearest(event) {
    const box = this.svg.getBoundingClientRect();
    const x = event.clientX - box.left - this.w / 2, y = event.clientY - box.top - this.h / 2;
    if (Math.hypot(x, y) <= HUB) return null;
    let best, least = 28 * 28;
    for (const place of this.places.values()) {
      const d = (place.x - x) ** 2 + (place.y - y) ** 2;
      if (d < least) [best, least] = [place, d];
    }
    return best;
  }

  click(event) {
    const place = this.nearest(event);
    if (place === undefined) return;
    this.at = place?.peer ?? null;
    this.onSelect(this.at);
  }

  point(event) {
    const place = this.nearest(event);
    set(this.svg, 'data-over', place !== undefined);
    if (!place) return set(this.pointed, 'visibility', 'hidden');
    set(this.pointed, 'visibility', null);
    text(this.pointed, `${place.peer.subnet}  ${NAMES[place.peer.state]}  ${bits(place.peer.rate)}`);
    const half = this.w / 2 - 6;
    set(this.pointed, 'text-anchor', place.x > this.w / 5 ? 'end' : place.x < -this.w / 5 ? 'start' : 'middle');
    set(this.pointed, 'x', Math.max(-half, Math.min(half, place.x)).toFixed(1));
    set(this.pointed, 'y', (place.y + (place.y > 0 ? -16 : 24)).toFixed(1));
  }

  unpoint() {
    set(this.pointed, 'visibility', 'hidden');
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const n = this.list.length, i = this.at ? this.list.indexOf(this.at) : -1;
    const page = Math.max(1, Math.round(n / 12));
    const to = (k) => this.list[((k % n) + n) % n] ?? null;
    switch (event.key) {
      case 'ArrowRight': case 'ArrowDown': this.at = to(i + 1); break;
      case 'ArrowLeft': case 'ArrowUp': this.at = to(i < 0 ? n - 1 : i - 1); break;
      case 'PageDown': this.at = to(i + page); break;
      case 'PageUp': this.at = to(i - page); break;
      case 'End': this.at = to(n - 1); break;
      case 'Home': case 'Escape': this.at = null; break;
      case 'Enter': case ' ': this.onSelect(this.at); break;
      default: return;
    }
    event.preventDefault();
    this.draw();
  }
}
