// The parts around the picture and the table.

import { byId, h, set, show, svg, text } from './dom.js';
import { NAMES } from './model.js';
import { symbol } from './picture.js';
import { bits, clock, count, perSecond, plural, short, span } from './words.js';

export function panels(doc, network) {
  verdict(network);
  warnings(doc, network);
  drops(doc, network);
  skipped(doc, network);
  doctor(doc, network);
  queues(network);
  features(network);
  const s = network.view.status ?? {};
  text(byId('footer'), `muslin ${doc.version ?? ''} on Linux ${s.kernel ?? ''}`);
  text(byId('host'), ` ${s.node?.public_ip || s.node?.public_ipv6 || ''}`);
}

// judge is the whole in one sentence, and how bad it is.
function judge(network) {
  const { view } = network, s = view.status ?? {};
  const all = network.sorted.length, down = network.count('down'), lossy = network.count('loss'), unknown = network.count('unknown');
  if (view.state === 'failed') return ['down', 'The network does not run'];
  if (view.state !== 'running') return ['loss', `Not running yet: ${view.state ?? 'starting'}`];
  if (down > 0 && down === all) return ['down', all === 1 ? 'The only peer is down' : `All ${count(all)} peers are down`];
  if (down > 0) return ['down', `${count(down)} of ${plural(all, 'peer')} ${down === 1 ? 'is' : 'are'} down`];
  if (lossy > 0) return ['loss', `${count(lossy)} of ${plural(all, 'peer')} ${lossy === 1 ? 'loses' : 'lose'} packets`];
  if (!s.store?.healthy) return ['loss', 'The store is not in order; peers stay as last known'];
  if (all === 0) return ['unknown', 'No peers yet'];
  if (unknown > 0) return ['up', `${count(all - unknown)} of ${plural(all, 'peer')} up, ${count(unknown)} not known`];
  return ['up', all === 1 ? 'The only peer is up' : `All ${count(all)} peers are up`];
}

function verdict(network) {
  const [state, words] = judge(network);
  const title = byId('verdict');
  set(title, 'data-state', state);
  show(title, symbol(state), words);
  const s = network.view.status ?? {};
  const dropping = [...network.drops.values()].reduce((a, b) => a + b, 0);
  const node = s.node ?? {};
  const left = node.lease_expires ? Date.parse(node.lease_expires) - network.time : null;
  const figure = (name, value, bad) => h('div', bad ? { class: bad } : null, h('dt', null, name), h('dd', null, value));
  const direct = network.sorted.length > 0 && network.sorted.every((p) => p.now.way === 'direct'); // past the daemon
  const rate = (n) => (direct && n === 0 ? 'not counted' : bits(n));
  show(byId('figures'),
    figure('Received', rate(network.total('rx'))),
    figure('Sent', rate(network.total('tx'))),
    figure('Dropped', perSecond(dropping), dropping > 0 ? 'loss' : ''),
    figure('Store', s.store?.healthy ? 'healthy' : s.state === 'running' ? 'not in order' : 'not watched', s.store?.healthy ? '' : 'loss'),
    figure('Lease', left === null ? (s.state === 'running' ? 'kept' : 'none yet') : left > 0 ? `${short(left)} left` : 'expired', left !== null && left < 600000 ? 'loss' : ''),
    figure('Running', s.since ? short(network.time - Date.parse(s.since)) : 'not yet'));
  const down = network.count('down');
  document.title = `${down > 0 ? `${count(down)} down: ` : state === 'up' ? '' : '! '}muslin ${node.public_ip || node.public_ipv6 || ''}${network.name ? ` ${network.name}` : ''}`;
}

function warnings(doc, network) {
  const all = [...(network.view.status?.warnings ?? [])];
  if (network.view.error) all.unshift(network.view.error);
  if (doc.config_error) all.unshift(`The file with the networks is wrong now, and all stay as they were: ${doc.config_error}`);
  const report = network.view.doctor, age = report ? doc.time - Date.parse(report.time) : Infinity;
  const broken = age < STALE ? findingsOf(network).filter((f) => f.severity === 'broken') : [];
  if (broken.length > 0) {
    all.unshift(`doctor, ${age < 60000 ? 'just now' : `${short(age)} ago`}: ${broken[0].summary}${broken.length > 1 ? ` (and ${count(broken.length - 1)} more, below)` : ''}`);
  }
  byId('warnings').hidden = all.length === 0;
  show(byId('warnings-list'), ...new Set(all).values().map((w) => h('li', null, w)));
}

function drops(doc, network) {
  const all = Object.entries(network.view.status?.drops ?? {}).filter(([, n]) => n > 0);
  if (all.length === 0) return show(byId('drops'), h('p', { class: 'good' }, 'None since the daemon counts.'));
  all.sort(([a, n], [b, m]) => network.drops.get(b) - network.drops.get(a) || m - n);
  show(byId('drops'), h('table', { class: 'list' },
    h('thead', null, h('tr', null, h('th', { scope: 'col' }, 'Reason'), h('th', { scope: 'col', class: 'right' }, 'Now'), h('th', { scope: 'col', class: 'right' }, 'In all'))),
    h('tbody', null, all.map(([reason, n]) => {
      const rate = network.drops.get(reason) ?? 0;
      return h('tr', rate > 0 ? { class: 'loss' } : null,
        h('th', { scope: 'row' }, h('code', null, reason), h('span', { class: 'why muted' }, doc.drops?.[reason] ?? '')),
        h('td', { class: 'right' }, perSecond(rate)), h('td', { class: 'right' }, count(n)));
    }))));
}

function skipped(doc, network) {
  const all = Object.entries(network.view.status?.skipped ?? {}).filter(([, n]) => n > 0);
  byId('skipped-panel').hidden = all.length === 0;
  show(byId('skipped'), h('table', { class: 'list' },
    h('thead', null, h('tr', null, h('th', { scope: 'col' }, 'Reason'), h('th', { scope: 'col', class: 'right' }, 'Leases'))),
    h('tbody', null, all.map(([reason, n]) => h('tr', null,
      h('th', { scope: 'row' }, h('code', null, reason), h('span', { class: 'why muted' }, doc.skipped?.[reason] ?? '')), h('td', { class: 'right' }, count(n)))))));
}

const findingsOf = (network) => (network.view.doctor?.findings ?? []).filter((f) => !f.net || !network.name || f.net === network.name);

// An hour on, what doctor found says little of how things are.
const STALE = 3600000;

function doctor(doc, network) {
  const report = network.view.doctor;
  if (!report) {
    return show(byId('doctor'), h('p', { class: 'muted' }, 'Nobody has asked yet. On this host: ', h('code', null, 'muslin doctor'), '.'));
  }
  const age = Math.max(0, doc.time - Date.parse(report.time));
  const when = h('p', { class: age > STALE ? 'loss' : 'muted' }, `Asked ${age < 60000 ? 'just now' : `${short(age)} ago`}${age > STALE ? ': ask again with ' : '.'}`, age > STALE && h('code', null, 'muslin doctor'));
  if (report.error) return show(byId('doctor'), when, h('p', { class: 'loss' }, `It cannot be shown: ${report.error}`));
  const found = findingsOf(network);
  if (!found.length) return show(byId('doctor'), when, h('p', { class: 'good' }, 'It found nothing.'));
  show(byId('doctor'), when, h('ol', { class: 'findings' }, found.map((f) => {
    const state = f.severity === 'broken' ? 'down' : 'loss';
    return h('li', { class: state },
      h('p', { class: 'summary' }, symbol(state), h('strong', null, `${f.severity}: `), f.summary),
      h('p', { class: 'muted' }, [f.evidence, f.confidence, f.node].filter(Boolean).join(' · ')),
      f.fix && h('p', null, h('code', { class: 'fix' }, f.fix)));
  })));
}

// queues shows what each worker does: how much it reads in one go, and how much of that the kernel joins.
function queues(network) {
  const all = (network.view.status?.queues ?? []).filter((q) => q.batches > 0);
  byId('queues-panel').hidden = all.length === 0;
  const mean = (sizes) => (sizes?.count > 0 ? (sizes.sum / sizes.count).toFixed(1) : '');
  const several = new Set(all.map((q) => q.family)).size > 1;
  show(byId('queues'), h('table', { class: 'list queues' },
    h('thead', null, h('tr', null, h('th', { scope: 'col' }, 'Queue'), ['Packets', 'Batch', 'Read', 'Written'].map((t) => h('th', { scope: 'col', class: 'right' }, t)),
      h('th', { scope: 'col' }, 'Batch sizes'))),
    h('tbody', null, all.map((q) => h('tr', null,
      h('th', { scope: 'row' }, `${q.queue} ${q.direction}${several ? ` ${{ ipv4: 'IPv4', ipv6: 'IPv6' }[q.family] ?? q.family}` : ''}`),
      [count(q.packets), mean(q.batch_sizes), mean(q.read_segments), mean(q.write_segments)].map((v) => h('td', { class: 'right' }, v)),
      h('td', null, histogram(q.batch_sizes)))))),
  h('p', { class: 'muted' }, 'Batch: pieces read in one go. Read, written: packets in a piece, which are joined where the kernel has the features for it. Means since the daemon counts.'));
}

// histogram has a bar for each size. How many had a bound's size at most is cumulative.
function histogram(sizes) {
  if (!sizes?.count) return '';
  const each = sizes.counts.map((n, i) => n - (sizes.counts[i - 1] ?? 0));
  each.push(sizes.count - sizes.counts.at(-1));
  const most = Math.max(...each), middle = sizes.bounds[sizes.counts.findIndex((n) => n * 2 >= sizes.count)];
  return [svg('svg', { class: 'sizes', width: each.length * 6, height: 26, 'aria-hidden': 'true', focusable: 'false' },
    each.map((n, i) => {
      const high = n === 0 ? 0 : Math.max(1, Math.round((n / most) * 24));
      return svg('rect', { x: i * 6, y: 26 - Math.max(1, high), width: 5, height: Math.max(1, high), class: n === 0 ? 'none' : null });
    })), h('span', { class: 'quiet' }, middle === undefined ? 'most are large' : `half have ${middle} at most`)];
}

function features(network) {
  const all = network.view.status?.features ?? [];
  const off = all.filter((f) => !f.on), on = all.filter((f) => f.on);
  const line = (f) => h('li', { class: f.on ? 'on' : 'off' }, h('code', null, f.name), h('span', { class: 'muted' }, f.on ? '' : 'off: ', f.reason));
  show(byId('features'),
    off.length > 0 && h('ul', { class: 'features' }, off.map(line)),
    on.length > 0 && h('h3', null, `${count(on.length)} on`),
    on.length > 0 && h('ul', { class: 'features' }, on.map(line)));
}

const LOG = 60; // lines

// log adds what has happened to the list.
export function log(time, news) {
  const list = byId('log');
  for (const { state, words } of news) {
    list.prepend(h('li', { class: state }, h('time', { datetime: new Date(time).toISOString() }, clock(time)), symbol(state), h('span', null, words)));
  }
  while (list.children.length > LOG) list.lastChild.remove();
}

// states makes the buttons that choose peers by state; with the shapes they are the picture's legend, too.
export class States {
  constructor(parent, onChange) {
    this.chosen = 'all';
    this.counts = {};
    for (const state of ['all', 'down', 'loss', 'unknown', 'up']) {
      const input = h('input', { type: 'radio', name: 'state', value: state, checked: state === 'all', onchange: () => {
        this.chosen = state;
        onChange();
      } });
      parent.append(h('label', { class: state }, input, state !== 'all' && symbol(state), h('span', null, NAMES[state] ?? 'all'), this.counts[state] = h('span', { class: 'n' })));
    }
  }

  update(network) {
    for (const [state, element] of Object.entries(this.counts)) {
      text(element, count(state === 'all' ? network.sorted.length : network.count(state)));
    }
  }
}

export const connection = (state, ms) => ({
  live: 'live',
  silent: `no news for ${span(ms)}`,
  lost: 'no connection; trying again',
}[state]);
