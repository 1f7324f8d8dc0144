// ---- moving and pinning ----------------------------------------------------------------------------------

const readable = (page, r, i) => {
  const made = page.chips[r] && page.chips[r][i];
  return Boolean(made && (page.transport || !made.classList.contains("unread")));
};

function activate(page, place, follow) {
  page.active = place;
  page.boxes.forEach((box, r) => {
    if (r === place.r) box.setAttribute("aria-activedescendant", page.chips[r][place.i].id);
    else box.removeAttribute("aria-activedescendant");
  });
  if (follow) page.chips[place.r][place.i].scrollIntoView({ block: "nearest" });
}

function pin(page, place, follow) {
  const selected = (at, on) => page.chips[at.r][at.i].setAttribute("aria-selected", String(on));
  if (page.pinned) selected(page.pinned, false);
  page.pinned = place;
  page.chose = true;
  if (place) {
    selected(place, true);
    activate(page, place, follow);
  }
  if (page.own) {
    const { run, tokens } = place ? page.sides[place.r] : {};
    try { history.replaceState(null, "", place ? `#${run}.${tokens[place.i].p}` : "#"); } catch { /* in a sandbox */ }
  }
  draw(page);
}

/** Pin what a link names, #run.position, if there is such a token. */
function follow(page) {
  const linked = /^#(\d+)\.(\d+)$/.exec(location.hash);
  if (!linked) return;
  const [run, position] = linked.slice(1).map(Number), side = page.runs.find((each) => each.run === run);
  const i = side ? side.tokens.findIndex((token) => token.p === position) : -1;
  if (i < 0) return;
  if (!page.sides.includes(side)) show(page, [run]);
  const r = page.sides.indexOf(side);
  if (!readable(page, r, i)) return;
  // The browser would scroll a page that is loaded again to where it was, after this.
  try { if (page.own) history.scrollRestoration = "manual"; } catch { /* in a sandbox */ }
  pin(page, { r, i }, true);
}

function move(page, place) {
  if (!place || !readable(page, place.r, place.i)) return;
  page.hovered = null;
  activate(page, place, true);
  if (page.pinned) pin(page, place, true);
  draw(page);
}

function along(page, step) {
  const { r } = page.active;
  let i = page.active.i + step;
  while (i >= 0 && i < page.chips[r].length && !readable(page, r, i)) i += step;
  return { r, i };
}

function across(page, step) {
  const { r } = page.active, row = page.chips[r], here = row[page.active.i].getBoundingClientRect();
  const middle = (here.left + here.right) / 2;
  let line = null, best = null, near = Infinity;
  for (let i = page.active.i + step; i >= 0 && i < row.length; i += step) {
    const box = row[i].getBoundingClientRect();
    if (step > 0 ? box.top < here.top + here.height * 0.6 : box.top > here.top - here.height * 0.6) continue;
    if (line !== null && Math.abs(box.top - line) > here.height * 0.6) break;
    if (!readable(page, r, i)) continue;
    line = box.top;
    const off = Math.abs((box.left + box.right) / 2 - middle);
    if (off < near) { near = off; best = { r, i }; }
  }
  return best;
}

/** Pin a token, or let go of it; where the page is live, one that was not read is asked for. */
function choose(page, place) {
  if (page.picked) return page.picked(place);
  if (page.transport && columns(page, page.sides[place.r]).some((side) => !wasRead(side.tokens[place.i]))) {
    explain(page, place.r, [place.i]);
    return pin(page, place, true);
  }
  return pin(page, same(place, page.pinned) ? null : place, true);
}

function listen(page, r, box) {
  box.addEventListener("focus", () => {
    if (page.active.r === r || page.active.i < 0) return;
    const there = page.opposite[page.active.r].get(page.active.i);
    if (there !== undefined && readable(page, r, there)) move(page, { r, i: there });
    else move(page, { r, i: page.sides[r].tokens.findLastIndex((_, i) => readable(page, r, i)) });
  });
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || page.active.i < 0) return;
    const wide = event.shiftKey && page.transport;
    if (wide && /^Arrow(Left|Right)$/.test(event.key)) stretch(page, page.active);
    const go = {
      ArrowRight: () => move(page, along(page, 1)), ArrowLeft: () => move(page, along(page, -1)),
      ArrowDown: () => move(page, across(page, 1)), ArrowUp: () => move(page, across(page, -1)),
      Home: () => move(page, { r, i: page.chips[r].findIndex((_, i) => readable(page, r, i)) }),
      End: () => move(page, { r, i: page.chips[r].findLastIndex((_, i) => readable(page, r, i)) }),
      Enter: () => { if (!page.range || !finish(page)) choose(page, page.active); },
      " ": () => { if (!page.range || !finish(page)) choose(page, page.active); },
    }[event.key];
    if (!go) return;
    event.preventDefault();
    go();
    if (wide && /^Arrow/.test(event.key)) stretch(page, null, page.active);
    else if (page.range) loose(page);
  });
}

function find(page, target) {
  const made = target instanceof Element ? target.closest(".t") : null;
  const place = made && page.where.get(made);
  return place && readable(page, place.r, place.i) ? place : null;
}

function pointers(page) {
  const { texts } = page.at;
  texts.addEventListener("pointerover", (event) => {
    const place = find(page, event.target);
    page.hovered = place || page.hovered;
    if (place && page.range && page.range.drag && event.buttons === 1) stretch(page, null, place);
    draw(page);
  });
  texts.addEventListener("pointerleave", () => { page.hovered = null; draw(page); });
  texts.addEventListener("pointerdown", (event) => {
    if (page.range) loose(page);
    const place = event.button === 0 && event.pointerType === "mouse" && page.transport ? find(page, event.target) : null;
    if (!place) return;
    stretch(page, place);
    page.range.drag = true;
  });
  texts.addEventListener("pointerup", () => { if (page.range && !finish(page)) loose(page); });
  texts.addEventListener("click", (event) => {
    const place = find(page, event.target);
    if (page.dragged) page.dragged = false;
    else if (place) choose(page, place);
  });
}

/** Listen for the keys of the whole page. */
function keys(page) {
  const focused = () => page.box.getRootNode().activeElement;
  const typing = (target) => target instanceof HTMLElement && (target.matches("textarea, input[type=search]"));
  const { query } = page.at, whole = page.own ? document : page.box;
  query.addEventListener("input", () => search(page));
  query.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); nextHit(page, event.shiftKey ? -1 : 1); }
  });
  const pressed = (event) => {
    if (event.key === "/" && !typing(event.composedPath()[0])) {
      event.preventDefault();
      query.focus();
      query.select();
    } else if (event.key === "Escape") {
      event.preventDefault();
      if (page.picked || page.range) giveUp(page);
      else if (query.value) { query.value = ""; search(page); }
      else if (!page.transport || !cancel(page)) pin(page, null);
      if (focused() === query) page.boxes[page.active.r].focus();
    }
  };
  whole.addEventListener("keydown", pressed);
  return () => whole.removeEventListener("keydown", pressed);
}
