// ---- a range of tokens, dragged over or stretched with Shift: all that is unread in it is asked for ---------------------

/** Begin a range of tokens at `from` (unless there is one), or stretch it to `to`. */
function stretch(page, from, to) {
  if (from && !page.range) page.range = { from, to: from };
  if (to && page.range && to.r === page.range.from.r) page.range.to = to;
  mark(page);
}

function mark(page) {
  for (const made of page.inRange || []) made.classList.remove("range");
  const places = within(page);
  page.inRange = places.length > 1 ? places.map((i) => page.chips[page.range.from.r][i]) : [];
  for (const made of page.inRange) made.classList.add("range");
  page.at.texts.classList.toggle("dragging", page.inRange.length > 0);
}

function within(page) {
  if (!page.range) return [];
  const [first, last] = [page.range.from.i, page.range.to.i].sort((a, b) => a - b);
  return Array.from({ length: last - first + 1 }, (_, k) => first + k);
}

/** Let go of the range. */
function loose(page) {
  page.range = null;
  mark(page);
}

/** Ask for what is in the range; return whether there is one. */
function finish(page) {
  const places = within(page), { r } = page.range.from;
  if (places.length < 2) return false;
  page.dragged = page.range.drag;
  const last = page.range.to;
  loose(page);
  explain(page, r, places);
  pin(page, last);
  setTimeout(() => { page.dragged = false; });
  return true;
}

/** Let go of the range, or of the experiment that waits for a second token. */
function giveUp(page) {
  page.picked = null;
  hint(page);
  if (page.range) loose(page);
}
