// Elements by hand. Text is set as text, never as markup.

const SVG = 'http://www.w3.org/2000/svg';

export const byId = (id) => document.getElementById(id);

// h makes an element; what begins with "on" is a listener, null and false leave an attribute out.
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else set(element, name, value);
  }
  element.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

// set changes an attribute if it is another: most of what comes every second is as it was.
export function set(element, name, value) {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
    return;
  }
  const text = value === true ? '' : String(value);
  if (element.getAttribute(name) !== text) element.setAttribute(name, text);
}

export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

// show puts the children in place of what is there, but not when they would read the same: a reader's place and a
// selection stay.
export function show(element, ...children) {
  const next = h('div', null, ...children);
  if (same(element, next)) return;
  element.replaceChildren(...next.childNodes);
}

function same(a, b) {
  return a.childNodes.length === b.childNodes.length && [...a.childNodes].every((child, i) => child.isEqualNode(b.childNodes[i]));
}
