// Elements made without markup: whatever comes from the server is text, and stays text.

const SVG = "http://www.w3.org/2000/svg";

export function byId(id) {
  return document.getElementById(id);
}

export function element(tag, className = "", text = null) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== null) made.textContent = text;
  return made;
}

export function shape(tag, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  return made;
}

export function show(node, visible) {
  node.hidden = !visible;
}

// Writes `text` only when it changed, so that selections and screen readers are left alone.
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Makes the children of `list` those of `items`, in order: what has a known key is kept, and updated.
export function reconcile(list, items, { key, make, update }) {
  const known = new Map([...list.children].map((child) => [child.dataset.key, child]));
  let place = null;
  for (const item of items) {
    const name = String(key(item));
    let child = known.get(name);
    if (child === undefined) {
      child = make(item);
      child.dataset.key = name;
    }
    known.delete(name);
    update(child, item);
    const next = place === null ? list.firstElementChild : place.nextElementSibling;
    if (child !== next) list.insertBefore(child, next);
    place = child;
  }
  for (const gone of known.values()) gone.remove();
}
