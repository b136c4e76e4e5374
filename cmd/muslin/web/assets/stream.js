// The view as server-sent events: "whole" is the document, "patch" a JSON merge patch (RFC 7396) of it.

export function merge(target, patch) {
  if (patch === null || typeof patch !== 'object' || Array.isArray(patch)) return patch;
  if (target === null || typeof target !== 'object' || Array.isArray(target)) target = {};
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete target[key];
    else target[key] = merge(target[key], value);
  }
  return target;
}

// How long without a word from the server until the page says so, and until it asks anew. The server speaks every second.
const SILENT = 4000;
const DEAD = 20000;

// follow calls onView(document) with each event, and onState("live", "silent" or "lost", ms since the last word) at each
// change of it.
export function follow(url, onView, onState) {
  let source = null;
  let view = null;
  let heard = 0;
  let again = 0;

  function open() {
    if (source) source.close();
    heard = performance.now();
    source = new EventSource(url);
    source.addEventListener('whole', (e) => take(JSON.parse(e.data)));
    source.addEventListener('patch', (e) => take(view && merge(view, JSON.parse(e.data))));
    source.addEventListener('error', () => {
      onState('lost', performance.now() - heard);
      if (source.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
      clearTimeout(again);
      again = setTimeout(refused, 2000);
    });
  }

  // What was refused for want of a token leads to the form; anything else is tried again.
  async function refused() {
    try {
      const answer = await fetch(url, { method: 'HEAD' });
      if (answer.status === 401) location.assign('/login');
    } catch { /* nobody is there */ }
    open();
  }

  function take(next) {
    if (!next) return;
    view = next;
    heard = performance.now();
    onState('live', 0);
    onView(view);
  }

  setInterval(() => {
    const silence = performance.now() - heard;
    if (silence > DEAD) open();
    else if (silence > SILENT) onState(source.readyState === EventSource.OPEN ? 'silent' : 'lost', silence);
  }, 1000);
  open();
}
