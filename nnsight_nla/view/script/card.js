// ---- the card of a token: what is said of it, and what that was measured against ----------------------------

/** Return `text` as nodes, with a <mark> around each match of the search. */
function marked(page, text) {
  const nodes = [], { needle } = page, lower = fold(text);
  let from = 0;
  for (let to = needle ? lower.indexOf(needle) : -1; to >= 0; to = lower.indexOf(needle, from)) {
    nodes.push(text.slice(from, to), el("mark", "", text.slice(to, to + needle.length)));
    from = to + needle.length;
  }
  return [...nodes, text.slice(from)];
}

/** Return the paragraphs of `text`; words that `other` lacks are struck (side 0) or added (side 1). */
function paragraphs(page, text, other, side) {
  const differs = other !== undefined && other !== text, lines = [paragraph("")];
  for (const [piece, own] of differs ? pieces(text, other, side) : [[text, false]]) {
    piece.split(/\n+/).forEach((part, k) => {
      if (k) lines.push(paragraph(""));
      if (!part) return;
      const nodes = marked(page, part);
      lines[lines.length - 1].append(...(own ? [el(side === 0 ? "del" : "ins", "", ...nodes)] : nodes));
    });
  }
  return lines.filter((line) => line.childNodes.length);
}

/** Return the card of token `i` of `side`; `other` is the token opposite, on the other side. */
function card(page, side, r, i, other) {
  const token = side.tokens[i], made = el("div", "card"), two = page.sides.length === 2;
  if (two) made.style.setProperty("--side", COLORS[r]);
  made.append(head(page, side, r, i), said(page, token, other, r));
  const more = [samples(token), claims(token), next(token), receipt(side, token)].filter(Boolean);
  const first = [figures(token, r === 1 ? other : undefined), notes(token)].filter(Boolean);
  // Of two cards both texts are to be seen at once.
  if (two && more.length) made.append(...first, el("div", "rows", folded("more", () => el("div", "", ...more))));
  else made.append(...more.splice(0, token.samples ? 1 : 0), ...first, ...more);
  if (wasRead(token)) made.append(actions(page, side, r, i));
  return made;
}

function head(page, side, r, i) {
  const token = side.tokens[i], members = group(side.tokens, i);
  const name = el("span", "token", side.tokens[members[0]].w || token.t || "∅");
  name.dir = "auto";
  const about = page.depth ? ` · block ${side.layer}` : page.sides.length === 2 ? ` · ${side.label}` : token.part === "prompt" ? "" : ` · ${token.part}`;
  const made = el("div", "head", name, el("span", "where", `position ${token.p}${about}`));
  if (token.more) made.append(el("span", "where", `… ${token.more.toLocaleString("en")} more characters`));
  if (members.length > 1) {
    const each = members.map((k, n) => {
      const choose = button(String(n + 1), () => { pin(page, { r, i: k }); draw(page); });
      choose.setAttribute("aria-pressed", String(k === i));
      choose.setAttribute("aria-label", `token ${n + 1} of this character, position ${side.tokens[k].p}`);
      return choose;
    });
    made.append(el("span", "members", el("span", "where", `token ${members.indexOf(i) + 1} of ${members.length}`), ...each));
  }
  if (same(page.pinned, { r, i })) made.append(el("span", "pin", "pinned"));
  return made;
}

function said(page, token, other, r) {
  const made = el("div", "said"), live = token.live;
  if (live && live.state === "waiting") {
    made.append(el("p", "unread", live.before ? `Waiting: ${live.before} before it.` : "Waiting for the verbalizer."));
  } else if (live && live.state === "text") {
    const lines = paragraphs(page, live.text);
    made.append(...(lines.length ? lines : [el("p")]));
    made.lastChild.append(silent(el("i", "caret")));
  } else if (live && live.state === "failed") made.append(paragraph("none", live.why));
  else if (token.err !== undefined) made.append(paragraph("none", `No text, because this vector ${token.err}`));
  else if (token.x === undefined) {
    made.append(el("p", "unread", page.transport ? unasked() : "This position was not read."));
  } else made.append(...paragraphs(page, token.x, other && other.x, r));
  return made;
}

/** Return the other samples, with what they agree on. */
function samples(token) {
  if (!token.samples || token.samples.length < 2) return null;
  const count = `${token.samples.length} samples`;
  return el("div", "rows", token.agree ? paragraph("agree", `They agree: ${token.agree}`) : null,
    folded(count, () => el("ol", "", ...token.samples.map((text) => { const line = el("li", "", text); line.dir = "auto"; return line; }))));
}

/** Return the grade with what it was measured against, and the numbers. */
function figures(token, old) {
  const list = el("dl"), add = (name, ...shown) => list.append(el("div", "", el("dt", "", name), el("dd", "", ...shown)));
  if (token.grade) add("reconstruction", el("span", `grade ${token.grade}`, token.grade));
  for (const [key, name] of [["cos", "reconstruction cosine"], ["fve", "FVE"], ["norm", "norm"]]) {
    const value = token[key], before = old && old[key];
    if (value === undefined) continue;
    const moved = before !== undefined && short(before) !== short(value);
    add(name, short(value), moved ? el("small", "", ` ${value > before ? "+" : "−"}${short(Math.abs(value - before))}`) : null);
  }
  if (!list.children.length) return null;
  const lines = [token.against || token.trust, token.fve === undefined ? undefined : token.var, token.shows];
  return el("div", "rows", list, ...lines.filter(Boolean).map((line) => paragraph("against", line)));
}

/** Return a bar for each part of the explanation: what the vector loses without it. */
function claims(token) {
  if (!token.claims || !token.claims.length) return null;
  const most = Math.max(...token.claims.map(([, lost]) => Math.abs(lost)), 1e-9);
  return bars("what the vector loses without each part", token.claims, most, loss);
}

/** Return what a part carries as the change without it, of two decimals; zero has no sign. */
function loss(carries) {
  const shown = Math.abs(carries).toFixed(2);
  return (Number(shown) ? (carries > 0 ? "−" : "+") : "") + shown;
}

/** Return the target's likeliest next tokens. */
function next(token) {
  if (!token.next || !token.next.length) return null;
  return bars("the target's next token", token.next, 1, percent, "code");
}

const percent = (share) => (share >= 0.1 ? `${Math.round(100 * share)}%` : `${Number((100 * share).toPrecision(2))}%`);

function bars(title, rows, most, figure, name = "span") {
  const list = el("ul", "bars");
  for (const [text, value] of rows) {
    const what = el(name, "what", text), bar = silent(el("i", value < 0 ? "less" : ""));
    what.dir = "auto";
    bar.style.setProperty("--part", unit(Math.abs(value) / most).toFixed(3));
    list.append(el("li", "", what, bar, el("span", "figure", figure(value))));
  }
  return el("div", "rows", el("p", "title", title), list);
}

/** Return the warnings, each once. */
function notes(token) {
  if (!token.warn) return null;
  return el("ul", "notes", ...[...new Set(token.warn)].map((note) => { const line = el("li", "", note); line.dir = "auto"; return line; }));
}

function receipt(side, token) {
  const facts = token.receipt || (token.x === undefined ? null : side.receipt);
  if (!facts || !facts.length) return null;
  return el("div", "rows", folded("receipt", () => el("dl", "facts", ...facts.map(([name, value]) => el("div", "", el("dt", "", name), el("dd", "", value))))));
}

// ---- what can be done with a token ------------------------------------------------------------------------

function actions(page, side, r, i) {
  const token = side.tokens[i], made = el("div", "actions"), code = codeOf(side, token);
  if (token.x !== undefined) made.append(copier("copy text", () => token.x));
  if (/^(https?|file):/.test(location.protocol)) {
    made.append(copier("copy link", () => `${location.href.split("#")[0]}#${side.run}.${token.p}`));
  }
  if (code) made.append(copier("copy code", () => code));
  if (page.transport) made.append(...experiments(page, side, r, i));
  return made;
}

/** Return the lines that reproduce an explanation; a file holds those of its text once. */
function codeOf(side, token) {
  return token.code || (side.code && token.x !== undefined ? `${side.code}\nprint(reading[${token.p}].explanation)\n` : null);
}

function copier(name, text) {
  const made = button(name, async () => {
    made.textContent = (await copied(text())) ? "copied" : "the browser forbids it";
    setTimeout(() => { made.textContent = name; }, 1500);
  });
  return made;
}

async function copied(text) {
  try { await navigator.clipboard.writeText(text); return true; } catch { /* a frame without that right */ }
  const field = el("textarea", "unseen");
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done;
}

// ---- the details show the pinned token, else the hovered one, else the active one ----------------------------

function draw(page) {
  const shown = page.pinned || page.hovered || page.active, { r, i } = shown, side = page.sides[r];
  const token = side && side.tokens[i], partner = side && i >= 0 ? page.opposite[r].get(i) : undefined;
  const key = JSON.stringify([shown, page.pinned, page.needle, page.version, token && token.live]);
  if (key === page.drawn) return;
  page.drawn = key;
  for (const old of page.lit || []) old.classList.remove("on", "partner", "pinned");
  page.lit = [];
  const cards = [];
  if (token) {
    const own = page.chips[r][i];
    own.classList.add("on");
    own.classList.toggle("pinned", Boolean(page.pinned));
    page.lit.push(own);
    if (page.depth) cards.push(...layers(page, side).map((each) => card(page, each, r, i)));
    else if (partner !== undefined) {
      const opposite = page.chips[1 - r][partner], [a, b] = r === 0 ? [i, partner] : [partner, i];
      opposite.classList.add("partner");
      page.lit.push(opposite);
      const [one, other] = page.sides;
      cards.push(card(page, one, 0, a, other.tokens[b]), card(page, other, 1, b, one.tokens[a]));
    } else cards.push(card(page, side, r, i));
  } else cards.push(el("p", "hint", page.sides.length ? "No position of this text was read." : "No text yet."));
  if (page.result) cards.unshift(page.result);
  if (page.needle) cards.push(results(page));
  page.at.details.setAttribute("aria-busy", String(Boolean(token && token.live && token.live.state === "text")));
  keepFocus(page, () => page.at.details.replaceChildren(...cards));
  const top = JSON.stringify(shown);
  if (top !== page.topmost || page.result !== page.resulted) page.at.details.scrollTop = 0;
  [page.topmost, page.resulted] = [top, page.result];
}

/** Change the details; a button that had the focus has it again if it is there again. */
function keepFocus(page, change) {
  const focused = page.box.getRootNode().activeElement, inside = focused && page.at.details.contains(focused);
  const name = inside ? focused.textContent : null;
  change();
  if (!inside || page.at.details.contains(focused)) return;
  const again = [...page.at.details.querySelectorAll("button")].find((each) => each.textContent === name);
  (again || page.boxes[page.active.r]).focus({ preventScroll: true });
}
