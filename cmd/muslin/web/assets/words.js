// Numbers and times as a person reads them.

const UNITS = ['', 'k', 'M', 'G', 'T', 'P'];

function scaled(value, base, prefixes, unit) {
  let i = 0;
  while (value >= base && i < prefixes.length - 1) {
    value /= base;
    i++;
  }
  const digits = i === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${prefixes[i]}${unit}`;
}

// bits is a rate, of bytes a second.
export const bits = (bytes) => (bytes < 0.125 ? '0' : scaled(bytes * 8, 1000, UNITS, 'b/s'));

export const bytes = (n) => scaled(n, 1024, ['', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi'], 'B');

export const count = (n) => (n ?? 0).toLocaleString('en');

// perSecond is a rate of packets.
export const perSecond = (n) => (n === 0 ? '0/s' : n < 10 ? `${n.toFixed(1)}/s` : `${scaled(n, 1000, UNITS, '').trim()}/s`);

// span is a length of time, of ms.
export function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

// short is a length of time in one unit.
export function short(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

// since is how long ago a time was, in the server's time; null: never.
export const since = (now, time) => (time ? Math.max(0, now - Date.parse(time)) : null);

export function ago(now, time) {
  const ms = since(now, time);
  return ms === null ? 'never' : ms < 5000 ? 'now' : `${short(ms)} ago`;
}

export function roundTrip(us) {
  if (us === null || us === undefined) return '';
  return us < 1000 ? `${Math.round(us)} µs` : us < 100000 ? `${(us / 1000).toFixed(1)} ms` : `${Math.round(us / 1000)} ms`;
}

export function percent(share) {
  if (share === null || share === undefined) return '';
  const p = share * 100;
  return p === 0 ? '0 %' : p < 1 ? '< 1 %' : `${Math.round(p)} %`;
}

export const clock = (ms) => new Date(ms).toLocaleTimeString('en-GB');

// moment is a time of day, with the day where it is not of the last twenty hours.
export const moment = (now, ms) => (now - ms < 20 * 3600000 ? '' : `${new Date(ms).toLocaleDateString('en-GB', { day: 'numeric', month: 'short' })}, `) + clock(ms);

export const plural = (n, one, many = one + 's') => `${count(n)} ${n === 1 ? one : many}`;
