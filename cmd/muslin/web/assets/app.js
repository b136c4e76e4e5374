// The page: takes the view as it comes and has each part of the page show it.

import { byId, h, set, text } from './dom.js';
import { details } from './details.js';
import { Network } from './model.js';
import { States, connection, log, panels } from './panels.js';
import { Picture } from './picture.js';
import { follow } from './stream.js';
import { Table } from './table.js';
import { plural } from './words.js';

const networks = new Map(); // by name
let doc = null;
let current = ''; // the network that is shown
let wanted = null; // the subnet of the peer that is chosen; null: this node

const picture = new Picture(byId('picture'), select);
const table = new Table(byId('table'), select);
const states = new States(byId('states'), render);
const words = byId('words');
words.addEventListener('input', render);
byId('filter').addEventListener('submit', (e) => e.preventDefault());

// What is chosen stands in the address, so that a page can be loaded again, or sent to a colleague.
function readAddress() {
  const [mark, network, ...subnet] = decodeURIComponent(location.hash.slice(1)).split('/');
  if (mark !== '') return; // a skip link's
  current = network ?? '';
  wanted = subnet.length > 0 ? subnet.join('/') : null;
}

function writeAddress() {
  history.replaceState(null, '', current || wanted ? `#/${current}${wanted ? `/${wanted}` : ''}` : location.pathname);
}

function select(peer) {
  wanted = peer?.subnet ?? null;
  writeAddress();
  render();
  if (innerWidth < 900 && peer) byId('details').scrollIntoView({ block: 'nearest' });
}

function take(view) {
  doc = view;
  const all = Object.entries(doc.networks ?? {});
  for (const [name, one] of all) {
    if (!networks.has(name)) networks.set(name, new Network(name));
    const network = networks.get(name);
    network.take(one, doc.time);
    const news = network.news.map((n) => (all.length > 1 ? { ...n, words: `${name}: ${n.words}` } : n));
    if (news.length === 0) continue;
    log(doc.time, news);
    say(news.map((n) => n.words).join('. '));
  }
  for (const name of networks.keys()) if (!doc.networks?.[name]) networks.delete(name);
  if (!networks.has(current)) current = networks.keys().next().value ?? '';
  if (!document.hidden) render();
}

// render shows the present network. It is called with each event, and when something else was chosen.
function render() {
  const network = networks.get(current);
  if (!network) return;
  switches();
  const selected = network.peers.get(wanted) ?? null;
  const sought = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = network.sorted.filter((p) => (states.chosen === 'all' || p.state === states.chosen) && p.matches(sought));
  panels(doc, network);
  states.update(network);
  const all = network.sorted.length;
  text(byId('shown'), shown.length === all ? '' : `${shown.length} of ${plural(all, 'peer')}`);
  picture.update(network, shown, selected);
  table.update(network, shown, selected, all === 0 ? 'No peers yet: other nodes appear as soon as they have a lease.' : 'No peer is like that.');
  details(byId('details'), network, selected, select);
  document.body.dataset.ready = 'true';
}

// switches has one button for each network, where there are several.
function switches() {
  const nav = byId('networks');
  nav.hidden = networks.size < 2;
  if (nav.hidden) return;
  const names = [...networks.keys()].sort();
  if (names.join() !== nav.dataset.names) {
    nav.dataset.names = names.join();
    nav.replaceChildren(...names.map((name) => h('button', { type: 'button', 'data-name': name, onclick: () => {
      current = name;
      wanted = null;
      writeAddress();
      render();
    } }, name, h('span', { class: 'bad' }))));
  }
  for (const button of nav.children) {
    const one = networks.get(button.dataset.name), down = one.count('down');
    set(button, 'aria-current', button.dataset.name === current ? 'true' : null);
    text(button.lastChild, one.view.state !== 'running' ? ` ${one.view.state === 'failed' ? 'failed' : 'starting'}` : down > 0 ? ` ${down} down` : '');
  }
}

// say has a screen reader say it. What was said before stays a while, or a second sentence would cut the first one off.
let spoken = [];
function say(sentence) {
  spoken.push(sentence);
  text(byId('live'), spoken.join('. '));
  setTimeout(() => {
    spoken.shift();
    text(byId('live'), spoken.join('. '));
  }, 10000);
}

let linked = 'waiting';
function link(state, ms) {
  const sign = byId('connection');
  set(sign, 'data-state', state);
  text(sign.lastChild, connection(state, ms));
  if (state === linked) return;
  if (state === 'lost') say('The connection to the daemon is lost');
  if (state === 'live' && linked === 'lost') say('The connection to the daemon is back');
  linked = state;
}

// Round trips are measured each second of the peers that somebody looks at: of many it is those on the screen.
const ALL_MEASURED = 50;
let told = '', toldAt = 0;
function tell() {
  const network = networks.get(current);
  if (document.hidden || linked !== 'live' || !network || network.sorted.length <= ALL_MEASURED) return;
  const seen = table.seen();
  if (wanted && network.peers.has(wanted)) seen.push(wanted);
  const query = new URLSearchParams({ network: current, peers: seen.join() }).toString();
  if (seen.length === 0 || (query === told && performance.now() - toldAt < 5000)) return;
  told = query;
  toldAt = performance.now();
  fetch('/look?' + query).catch(() => {}); // the stream says that nobody is there
}
setInterval(tell, 1000);

addEventListener('hashchange', () => {
  readAddress();
  render();
});
document.addEventListener('visibilitychange', () => {
  if (!document.hidden) render();
});
readAddress();
follow('/events', take, link);
