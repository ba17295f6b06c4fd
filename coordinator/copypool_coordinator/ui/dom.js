// Elements from values. Text goes into text nodes alone: a name is never markup, whatever it holds.

// `attributes`: class, data-*, aria-*, ... by name. Children: nodes, text, or nothing.
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

// A state: its colour, its shape (style.css) and its word.
export const badge = (tone, word) => make("span", { class: `badge ${tone}` }, word);

// A bar that is `ratio` full; null: not known.
export function bar(ratio, tone, label) {
  const known = ratio !== null && Number.isFinite(ratio);
  const percent = known ? Math.min(100, Math.max(0, ratio * 100)) : 0;
  const filled = make("span", { class: "filled" });
  filled.style.width = `${percent}%`;
  return make(
    "span",
    {
      class: `bar ${tone}`,
      role: "progressbar",
      "aria-label": label,
      "aria-valuemin": "0",
      "aria-valuemax": "100",
      "aria-valuenow": known ? percent.toFixed(0) : null,
    },
    filled,
  );
}

const kept = new WeakMap(); // parent -> key -> { seen, node }

// Make the children of `parent` those of `items`, in order. A child whose item is as it was stays the same element, so
// that focus, selection and the place scrolled to stay where they are.
export function sync(parent, items, key, render) {
  const before = kept.get(parent) ?? new Map();
  const after = new Map();
  for (const item of items) {
    const name = String(key(item));
    const seen = JSON.stringify(item);
    const known = before.get(name);
    after.set(name, known && known.seen === seen ? known : { seen, node: render(item) });
  }
  kept.set(parent, after);
  const wanted = new Set([...after.values()].map((each) => each.node));
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  let place = parent.firstElementChild;
  for (const { node } of after.values()) {
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
  }
}

export const byId = (id) => document.getElementById(id);

// Show a text, or hide the element where there is none.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = !text;
}
