// What is known of the node that was chosen: a peer, or this node.

import { h, svg, show } from './dom.js';
import { HISTORY, NAMES } from './model.js';
import { symbol } from './picture.js';
import { pathMTU } from './table.js';
import { ago, bits, bytes, count, moment, percent, roundTrip, since, span } from './words.js';

const row = (name, value, ...more) => (value || more.length > 0 ? [h('dt', null, name), h('dd', null, value, ...more)] : []);
const code = (value) => value && h('code', null, value);
const group = (title, ...rows) => (rows.flat().length === 0 ? null : [h('h4', null, title), h('dl', null, rows.flat())]);

export function details(panel, network, peer, onSelect) {
  const found = (network.view.doctor?.findings ?? []).filter((f) => peer && f.node === peer.now.public_ip);
  show(panel, ...(peer ? peerDetails(network, peer) : nodeDetails(network)).flat(), found.length > 0 && h('h4', null, 'Doctor says'),
    ...found.map((f) => h('p', { class: f.severity === 'broken' ? 'down' : 'loss' }, f.summary)));
  panel.querySelector('button.other')?.addEventListener('click', () => onSelect(network.peers.get(peer.now.other_subnet)));
  panel.querySelector('button.back')?.addEventListener('click', () => onSelect(null));
}

function peerDetails(network, p) {
  const s = p.now, now = network.time;
  const first = s.subnet.split('/')[0], net = network.name ? ` --net ${network.name}` : '';
  return [
    h('div', { class: 'head' }, h('h3', { id: 'details-title' }, p.subnet), h('button', { type: 'button', class: 'back' }, 'this node')),
    h('p', { class: `state ${p.state}` }, symbol(p.state), stateWords(p, now)),
    chart(network, p),
    group('Traffic',
      row('received', bits(p.rx), h('span', { class: 'muted' }, `${count(s.rx_packets)} packets, ${bytes(s.rx_bytes ?? 0)}`)),
      row('sent', bits(p.tx), h('span', { class: 'muted' }, `${count(s.tx_packets)} packets, ${bytes(s.tx_bytes ?? 0)}`)),
      row('last heard', ago(now, s.last_rx))),
    group('Path',
      row('way', s.way, h('span', { class: 'muted' }, s.way_reason)),
      row('round trip', roundTrip(s.rtt_us) || 'not known'),
      row('loss', percent(s.loss) || 'not known'),
      row('path MTU', pathMTU(s), s.path_mtu ? h('span', { class: 'muted' }, `${{ icmp: 'a router said so', probe: 'longer probes vanish' }[s.path_mtu_by] ?? ''}${s.path_mtu_since ? `, for ${span(since(now, s.path_mtu_since))}` : ''}`) : null)),
    group('Lease',
      row('public IP', code(s.public_ip)),
      row('backend', s.backend),
      row('VTEP MAC', code(s.vtep_mac)),
      row('public key', code(s.public_key)),
      row('endpoint', code(s.endpoint)),
      s.public_key ? row('handshake', ago(now, s.last_handshake)) : [],
      s.other_subnet ? row('same node', h('button', { type: 'button', class: 'other' }, s.other_subnet), { true: ' up', false: ' down' }[s.other_up] ?? '') : []),
    group('On this host', row('why this way', code(`muslin route ${first}${net}`)), row('try the path', code(`muslin ping ${s.public_ip}${net}`))),
  ];
}

function stateWords(p, now) {
  const s = p.now;
  switch (p.state) {
    case 'down':
      return s.way === 'none' ? 'There is no way to it' : s.down_since ? `Down for ${span(since(now, s.down_since))}, since ${moment(now, Date.parse(s.down_since))}` : 'Down';
    case 'loss':
      return `Loses packets: ${percent(s.loss)} of the last minute's requests had no answer`;
    case 'unknown':
      return 'Not known: it was neither heard nor asked yet';
  }
  return NAMES.up[0].toUpperCase() + NAMES.up.slice(1);
}

function nodeDetails(network) {
  const s = network.view.status ?? {}, n = s.node ?? {}, now = network.time;
  const lease = (s.state !== 'running') ? 'none yet' : n.lease_expires ? `expires in ${span(Date.parse(n.lease_expires) - now)}` : 'does not expire';
  return [
    h('h3', { id: 'details-title' }, 'This node'),
    h('p', { class: 'state' }, [n.public_ip, n.public_ipv6].filter(Boolean).join(' and '), n.iface ? ` on ${n.iface}` : ''),
    chart(network, null),
    group('Traffic', row('received', bits(network.total('rx'))), row('sent', bits(network.total('tx'))),
      row('counting for', s.since ? span(since(now, s.since)) : '')),
    group('Lease',
      row('subnet', code(n.subnet), n.subnet_ipv6 ? h('code', null, n.subnet_ipv6) : null),
      row('of', code(n.network), n.network_ipv6 ? h('code', null, n.network_ipv6) : null),
      row('lease', lease),
      row('backend', n.backend && `${n.backend}${n.vni !== undefined && n.vni !== null ? ` VNI ${n.vni}` : ''}${n.port ? ` port ${n.port}` : ''}`),
      row('MTU', n.mtu ? String(n.mtu) : ''),
      row('VTEP MAC', code(n.vtep_mac), n.vtep_mac_ipv6 ? h('code', null, n.vtep_mac_ipv6) : null),
      row('public key', code(n.public_key)),
      row('device', code(n.tun), n.tun_ipv6 ? h('code', null, n.tun_ipv6) : null)),
    group('Store',
      row('kind', s.store?.kind),
      row('at', (s.store?.endpoints ?? []).join(', ')),
      row('state', s.store?.healthy ? 'healthy' : s.state === 'running' ? 'not in order: peers stay as last known' : 'not watched yet', s.store?.last_error ? h('span', { class: 'muted' }, s.store.last_error) : null),
      row('revision', s.store?.revision ? count(s.store.revision) : '')),
    group('Process',
      row('kernel', s.kernel),
      row('user', s.privileges ? `${s.privileges.uid}, with ${(s.privileges.capabilities ?? []).map((c) => c.name).join(', ') || 'no capability'}` : ''),
      row('memory', s.process?.resident_bytes ? bytes(s.process.resident_bytes) : ''),
      row('pid', s.process ? `${s.process.pid}` : '')),
  ];
}

// chart is the last two minutes: what came above the line, what went below it. The figures under it say the same in words.
function chart(network, peer) {
  const w = 300, half = 26;
  const peers = peer ? [peer] : network.sorted;
  const sum = (what, i) => peers.reduce((n, p) => n + p[what][i], 0);
  const points = [];
  for (let age = Math.min(HISTORY, network.second) - 1; age >= 0; age--) {
    const i = (network.second - age) % HISTORY;
    points.push([age, sum('received', i), sum('sent', i)]);
  }
  const most = Math.max(125, ...points.map(([, a, b]) => Math.max(a, b)));
  const line = (k, sign) => `M${w} ${half} ` + points.toReversed().map(([age, ...v]) => `L${(w - (age * w) / (HISTORY - 1)).toFixed(1)} ${(half - (sign * v[k] * (half - 2)) / most).toFixed(1)}`).join(' ')
    + ` L${(w - ((points.length - 1) * w) / (HISTORY - 1)).toFixed(1)} ${half}Z`;
  return h('figure', { class: 'chart', 'aria-hidden': 'true' },
    svg('svg', { viewBox: `0 0 ${w} ${2 * half}`, preserveAspectRatio: 'none', focusable: 'false' },
      svg('path', { class: 'in', d: line(0, 1) }), svg('path', { class: 'out', d: line(1, -1) }), svg('path', { class: 'axis', d: `M0 ${half}H${w}` })),
    h('figcaption', { class: 'muted' }, h('span', null, 'two minutes'), h('span', null, `▲ received, ▼ sent; up to ${bits(most)}`)));
}
