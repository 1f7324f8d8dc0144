// ---- search -----------------------------------------------------------------------------------------------

/** Return `text` in lower case, or as it is where that has another length: an index fits both. */
function fold(text) {
  const lower = text.toLowerCase();
  return lower.length === text.length ? lower : text;
}

function search(page) {
  page.needle = page.at.query.value.trim().toLowerCase();
  page.hits = [];
  let every = 0;
  page.chips.flat().forEach((made) => made.classList.remove("hit"));
  page.sides.forEach((side, r) => side.tokens.forEach((_, i) => {
    every += 1;
    for (const run of columns(page, side)) {
      const text = run.tokens[i].x;
      if (!page.needle || text === undefined || !fold(text).includes(page.needle)) continue;
      page.chips[r][i].classList.add("hit");
      page.hits.push({ r, i, side: run });
      break;
    }
  }));
  page.at.texts.classList.toggle("searching", page.needle !== "");
  page.at.count.textContent = page.needle ? `${page.hits.length} of ${every}` : "";
  draw(page);
}

/** Return the part of `text` around a match, from a word's beginning to a word's end. */
function snippet(text, place, length) {
  let from = Math.max(0, place - 40), to = Math.min(text.length, place + length + 60);
  if (from > 0) {
    const word = /\s\S*$/.exec(text.slice(0, place));
    const gap = text.slice(from, place).search(/\s\S/);
    from = gap >= 0 ? from + gap + 1 : word ? word.index + 1 : from;
  }
  if (to < text.length) {
    const gap = text.slice(place + length, to + 1).search(/\s\S*$/);
    to = gap >= 0 ? place + length + gap : to;
  }
  return `${from > 0 ? "… " : ""}${text.slice(from, to).replace(/\s+/g, " ").trim()}${to < text.length ? " …" : ""}`;
}

function results(page) {
  const box = el("div", "card"), list = el("ul", "found");
  for (const { r, i, side } of page.hits.slice(0, 100)) {
    const token = side.tokens[i], place = fold(token.x).indexOf(page.needle);
    const label = page.depth ? ` · block ${side.layer}` : page.sides.length === 2 ? ` · ${side.label}` : "";
    const name = el("code", "", side.tokens[group(side.tokens, i)[0]].w || token.t);
    const found = button("", () => pin(page, { r, i }, true));
    found.append(name, el("span", "where", `position ${token.p}${label}`), el("br"), ...marked(page, snippet(token.x, place, page.needle.length)));
    list.append(el("li", "", found));
  }
  box.append(page.hits.length ? list : el("p", "hint", "No matches."));
  if (page.hits.length > 100) box.append(el("p", "hint", `and ${page.hits.length - 100} more`));
  return box;
}

function nextHit(page, step) {
  const { hits } = page;
  if (!hits.length) return;
  const order = (it) => it.r * 1e7 + it.i, here = order(page.pinned || page.active);
  const after = step > 0 ? hits.find((it) => order(it) > here) : hits.findLast((it) => order(it) < here);
  const { r, i } = after || (step > 0 ? hits[0] : hits[hits.length - 1]);
  pin(page, { r, i }, true);
}
