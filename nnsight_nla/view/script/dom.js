// ---- elements: every text becomes a text node, never markup -------------------------------------------

/** Return an element with classes and children; strings become text nodes. */
function el(name, classes, ...children) {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Return a button that calls `action`. */
function button(text, action, classes = "") {
  const made = el("button", classes, text);
  made.type = "button";
  made.addEventListener("click", action);
  return made;
}

/** Return an element that only a screen reader meets, or that it does not meet. */
function silent(made) { made.setAttribute("aria-hidden", "true"); return made; }

/** Return a paragraph whose direction follows its text. */
function paragraph(classes, ...children) {
  const made = el("p", classes, ...children);
  made.dir = "auto";
  return made;
}

/** Return a block that opens: a summary and what `make()` returns when it is opened first. */
function folded(summary, make) {
  const made = el("details", "fold", el("summary", "", summary));
  made.addEventListener("toggle", () => { if (made.open && made.children.length === 1) made.append(make()); });
  return made;
}

/** Return a list in words: a, b and c. */
const listed = (names) => names.join(", ").replace(/, ([^,]*)$/, " and $1");
const short = (value) => (typeof value === "number" ? String(Number(value.toPrecision(3))) : "–");
const same = (a, b) => Boolean(a && b && a.r === b.r && a.i === b.i);
const wasRead = (token) => token.x !== undefined || token.err !== undefined;
