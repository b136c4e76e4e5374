// What is made of the view: each peer's state, its rates, and what has changed since.

import { plural } from './words.js';

export const HISTORY = 120; // seconds

// The states, the worst first. Each has a shape and a line of its own besides its colour (picture.js, style.css).
export const STATES = ['down', 'loss', 'unknown', 'up'];
export const NAMES = { down: 'down', loss: 'loses packets', unknown: 'not known', up: 'up' };

// A peer loses packets from the first share on, and does so until it is below the second one.
const LOSSY = 0.03; // more than one of a minute's requests
const CLEAN = 0.01;

// The loss is that of the last minute. Of a peer that has just come back it tells that it was away, which is known.
const FORGIVE = 65000; // ms

// Peer is one peer with what is known of it over time. now is the peer's status.
export class Peer {
  constructor(subnet) {
    this.subnet = subnet;
    this.order = sortKey(subnet);
    this.state = 'unknown';
    this.back = -Infinity; // when it came back
    this.samples = [];
    this.received = new Float32Array(HISTORY); // bytes a second
    this.sent = new Float32Array(HISTORY);
    this.rx = 0; // now
    this.tx = 0;
  }

  take(status, time, second) {
    this.now = status;
    const before = this.state;
    this.state = this.judge(status, time);
    if (before === 'down' && this.state !== 'down') {
      this.back = time;
      this.state = this.judge(status, time);
    }
    const sample = { time, rx: status.rx_bytes ?? 0, tx: status.tx_bytes ?? 0 };
    const last = this.samples.at(-1);
    if (last && (sample.rx < last.rx || sample.tx < last.tx)) this.samples = []; // another daemon counts
    if (!last || time > last.time) this.samples.push(sample);
    while (this.samples.length > 2 && time - this.samples[1].time >= 2000) this.samples.shift();
    const first = this.samples[0];
    const seconds = (time - first.time) / 1000;
    this.rx = seconds > 0 ? (sample.rx - first.rx) / seconds : 0;
    this.tx = seconds > 0 ? (sample.tx - first.tx) / seconds : 0;
    this.received[second % HISTORY] = this.rx;
    this.sent[second % HISTORY] = this.tx;
    this.search = null;
  }

  judge(s, time) {
    if (s.up === false || s.down_since || s.way === 'none') return 'down';
    const loss = time - this.back < FORGIVE ? 0 : s.loss ?? 0;
    if (loss >= (this.state === 'loss' ? CLEAN : LOSSY)) return 'loss';
    return s.up === true ? 'up' : 'unknown';
  }

  get rate() { return this.rx + this.tx; }

  get name() { return `${this.subnet} at ${this.now.public_ip}`; }

  // matches is whether every word is in what one may look for.
  matches(words) {
    this.search ??= [this.subnet, this.now.public_ip, this.now.backend, this.now.way, this.now.vtep_mac, this.now.endpoint,
      this.now.public_key, NAMES[this.state]].join(' ').toLowerCase();
    return words.every((w) => this.search.includes(w));
  }
}

// sortKey orders subnets as numbers: IPv4 before IPv6.
function sortKey(subnet) {
  const [address] = subnet.split('/');
  if (!address.includes(':')) return address.split('.').map((n) => n.padStart(3, '0')).join('.');
  const [head, tail = ''] = address.split('::');
  const left = head ? head.split(':') : [];
  const right = tail ? tail.split(':') : [];
  const middle = Array(Math.max(0, 8 - left.length - right.length)).fill('0');
  return 'v6 ' + [...left, ...middle, ...right].map((n) => n.padStart(4, '0')).join(':');
}

// Network is one network over time. Its news are sentences about what has changed, in order.
export class Network {
  constructor(name) {
    this.name = name;
    this.peers = new Map();
    this.sorted = []; // by subnet
    this.drops = new Map(); // packets a second, by reason
    this.counted = [];
    this.news = [];
    this.second = 0;
    this.first = true;
    this.changed = true; // peers came or went
  }

  take(view, time) {
    this.view = view;
    this.time = time;
    this.second++;
    const came = [], went = [], down = [], back = [], lossy = [];
    this.changed = false;
    for (const [subnet, status] of Object.entries(view.peers ?? {})) {
      let peer = this.peers.get(subnet);
      if (!peer) {
        this.peers.set(subnet, peer = new Peer(subnet));
        this.changed = true;
        peer.take(status, time, this.second);
        came.push(peer);
        if (peer.state === 'down') down.push(peer);
        continue;
      }
      const before = peer.state;
      peer.take(status, time, this.second);
      if (peer.state === before) continue;
      if (peer.state === 'down') down.push(peer);
      else if (peer.state === 'loss') lossy.push(peer);
      else if (before === 'down' && peer.state !== 'unknown') back.push(peer);
    }
    for (const [subnet, peer] of this.peers) {
      if (view.peers?.[subnet]) continue;
      this.peers.delete(subnet);
      this.changed = true;
      went.push(peer);
    }
    if (this.changed) this.sorted = [...this.peers.values()].sort((a, b) => (a.order < b.order ? -1 : 1));
    this.countDrops(view.status?.drops ?? {}, time);
    this.news = this.first ? [] : [
      ...sentence(down, 'is down', 'are down', 'down'), ...sentence(lossy, 'loses packets', 'lose packets', 'loss'),
      ...sentence(back, 'is up again', 'are up again', 'up'),
      ...sentence(came, 'has joined', 'have joined', 'unknown'), ...sentence(went, 'has left', 'have left', 'unknown')];
    this.first = false;
  }

  countDrops(drops, time) {
    const last = this.counted.at(-1);
    if (last && Object.entries(last.drops).some(([reason, n]) => (drops[reason] ?? 0) < n)) this.counted = [];
    this.counted.push({ time, drops: { ...drops } });
    while (this.counted.length > 2 && time - this.counted[1].time >= 5000) this.counted.shift();
    const first = this.counted[0];
    const seconds = (time - first.time) / 1000;
    this.drops.clear();
    for (const [reason, n] of Object.entries(drops)) {
      this.drops.set(reason, seconds > 0 ? (n - (first.drops[reason] ?? 0)) / seconds : 0);
    }
  }

  // count is how many peers are in a state.
  count(state) {
    let n = 0;
    for (const p of this.sorted) if (p.state === state) n++;
    return n;
  }

  total(what) {
    let sum = 0;
    for (const p of this.sorted) sum += p[what];
    return sum;
  }
}

// sentence says of peers what has become of them: by name, as long as they are few.
function sentence(peers, one, many, state) {
  if (peers.length === 0) return [];
  const named = peers.slice(0, 3).map((p) => p.name).join(', ');
  if (peers.length === 1) return [{ state, words: `${named} ${one}` }];
  const rest = peers.length - 3;
  return [{ state, words: `${plural(peers.length, 'peer')} ${many}: ${named}${rest > 0 ? ` and ${rest} more` : ''}` }];
}
