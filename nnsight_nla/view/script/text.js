// ---- the text: a chip per token, made once; tokens that are one character together share a chip -------------
// Runs of text end at line breaks; runs outside the view are laid out when the browser is idle.

const RUN = 80, ROW = 2.05, COLORS = ["var(--one)", "var(--other)"];
const ANSWERS = new Set(["reply", "assistant", "model"]);

/** Show these runs, one or two next to each other. */
function show(page, ids) {
  page.sides = ids.map((id) => page.runs.find((side) => side.run === id));
  const two = page.sides.length === 2;
  page.depth = page.sides.length === 1 && layers(page, page.sides[0]).length > 1;
  page.box.classList.toggle("two", two);
  page.box.classList.toggle("depth", page.depth);
  page.opposite = [new Map(), new Map()];
  const [one, other] = page.sides;
  const pairs = !two ? [] : page.pairs && one.run === 0 && other.run === 1 ? page.pairs
    : aligned(one.tokens.map((token) => token.t), other.tokens.map((token) => token.t));
  for (const [a, b] of pairs) { page.opposite[0].set(a, b); page.opposite[1].set(b, a); }
  page.chips = page.sides.map(() => []);
  page.boxes = [];
  page.where = new WeakMap();
  measure(page);
  page.at.texts.replaceChildren(...page.sides.map((side, r) => section(page, r)));
  page.hovered = page.pinned = page.picked = null;
  page.drawn = "";
  page.active = { r: 0, i: one ? one.tokens.findLastIndex(wasRead) : -1 };
  if (page.active.i < 0 && one && page.transport) page.active.i = one.tokens.length - 1;
  if (page.active.i >= 0) activate(page, page.active, false);
  describe(page);
  picker(page);
  settle(page);
}

function section(page, r) {
  const side = page.sides[r], box = el("div", "tokens"), made = el("section");
  box.id = `text${r}`;
  box.tabIndex = 0;
  for (const [name, value] of Object.entries({ role: "listbox", "aria-label": `Tokens of ${side.label}`, "aria-controls": "details" })) {
    box.setAttribute(name, value);
  }
  if (page.sides.length === 2) {
    made.style.setProperty("--side", COLORS[r]);
    made.append(el("h2", "", silent(el("i")), side.label));
  }
  fill(page, r, box);
  listen(page, r, box);
  page.boxes.push(box);
  made.append(box);
  return made;
}

function fill(page, r, box) {
  const tokens = page.sides[r].tokens, line = page.sides.length === 2 ? 40 : 80;
  const parts = new Set(tokens.map((token) => token.part));
  parts.delete("template");
  let part = null, name = null, run = null, long = 0, rows = 0, row = 0;
  const end = () => {
    if (run) run.style.containIntrinsicBlockSize = `auto ${((rows + (row > 0)) * ROW).toFixed(1)}em`;
    run = null;
  };
  tokens.forEach((token, i) => {
    if (token.in && i) { page.chips[r].push(page.chips[r][i - 1]); return; }
    if (token.part !== name) {
      end();
      name = token.part;
      part = turn(name, name !== "template" && (parts.size > 1 || name !== "prompt"));
      box.append(part);
    }
    if (!run) { part.append((run = el("div", "run"))); long = rows = row = 0; }
    const made = chip(page, r, i);
    page.chips[r].push(made);
    run.append(made);
    long += 1;
    row += (token.w || token.t).length + 1;
    if (token.br) { run.append(el("br")); rows += Math.ceil(row / line); row = 0; }
    else if (row >= line) { rows += 1; row = 0; }
    if (token.br && long >= RUN) end();
  });
  end();
}

/** Return the block of one part of the text: the prompt, a chat turn, or the template's tokens. */
function turn(name, talk) {
  const made = el("div", "part", talk ? silent(el("span", "who", name)) : null);
  made.classList.toggle("template", name === "template");
  made.classList.toggle("talk", talk);
  made.classList.toggle("answer", ANSWERS.has(name));
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", name);
  return made;
}

/** Return the index of the last token of the character that token `i` begins. */
function lastOf(tokens, i) {
  while (i + 1 < tokens.length && tokens[i + 1].in) i += 1;
  return i;
}

/** Return the indices of the tokens that are one character with token `i`. */
function group(tokens, i) {
  let first = i;
  while (first > 0 && tokens[first].in) first -= 1;
  const last = lastOf(tokens, first);
  return Array.from({ length: last - first + 1 }, (_, k) => first + k);
}

function chip(page, r, i) {
  const { tokens, run } = page.sides[r], token = tokens[i], last = lastOf(tokens, i), made = el("span", "t");
  made.setAttribute("role", "option");
  made.setAttribute("aria-selected", "false");
  let text = token.w || token.t;
  if (text[0] === "␣") { made.append(el("span", "ws", "␣")); text = text.slice(1); }
  if (!/[␣↵⇥]/.test(text)) made.append(text);
  else for (const piece of text.split(/([␣↵⇥]+)/)) {
    if (piece) made.append(/^[␣↵⇥]/.test(piece) ? el("span", "ws", piece) : piece);
  }
  if (token.more) made.append("…");
  if (!token.t) made.append(el("span", "ws", "∅"));
  made.id = `t${run}-${i}`;
  const positions = last === i ? token.p : `${token.p} to ${tokens[last].p}`;
  made.setAttribute("aria-label", `${positions}: ${spoken(token)}`);
  page.where.set(made, { r, i: last });
  const { cell } = page.sides[r];
  if (cell !== undefined && cell >= i && cell <= last) {
    made.classList.add("cell");
    made.setAttribute("aria-description", "patched here");
  }
  dress(page, r, last, made);
  return made;
}

/** Give a chip the looks of its token's state; again whenever that changes. */
function dress(page, r, i, made) {
  const tokens = page.sides[r].tokens, token = tokens[i], is = (name, on) => made.classList.toggle(name, Boolean(on));
  const members = group(tokens, i).map((k) => tokens[k]);
  const read = members.some(wasRead);
  is("unread", !read);
  is("failed", token.err !== undefined);
  is("noted", token.err === undefined && token.warn);
  is("waiting", members.some((each) => each.live && each.live.state !== "failed"));
  if (read || page.transport) made.removeAttribute("aria-disabled");
  else made.setAttribute("aria-disabled", "true");
  let changed = 0;
  if (page.sides.length === 2 && read) {
    const partner = page.opposite[r].get(i), other = partner === undefined ? null : page.sides[1 - r].tokens[partner];
    changed = other === null ? 1 : wasRead(other) ? change(token, other) : 0;
    is("changed", changed);
    is("other", other === null || other.t !== token.t);
  }
  shade(page, made, token, changed);
}

function spoken(token) {
  const text = token.w || token.t;
  return text.replaceAll("␣", " ").replaceAll("↵", " newline ").replaceAll("⇥", " tab ").trim() || "space";
}

/** Lay out what is out of sight when the browser is idle: a screen reader does not see it before. */
function settle(page) {
  const waiting = [...page.at.texts.querySelectorAll(".run")];
  const later = window.requestIdleCallback || ((go) => setTimeout(go, 20));
  const rest = () => {
    if (!waiting.length) return;
    waiting.shift().style.contentVisibility = "visible";
    later(rest);
  };
  requestAnimationFrame(() => later(rest));
}

/** Return the readings of a side's text at each layer that was read, the side among them. */
function layers(page, side) {
  return side.prompt === undefined ? [side] : page.runs.filter((each) => each.prompt === side.prompt);
}

/** Return what is shown of a side, next to each other by depth. */
const columns = (page, side) => (page.depth ? layers(page, side) : [side]);

/** Offer the page's texts, where there are more than are shown. */
function picker(page) {
  const shown = page.sides.map((side) => side.run), more = page.runs.length > shown.length;
  page.texts = new Set(page.runs.map((side) => side.prompt ?? `run ${side.run}`)).size;
  page.at.runs.hidden = !more;
  page.at.runs.replaceChildren(...(more ? page.runs : []).map((side) => {
    const name = button(layers(page, side).length > 1 ? `${page.texts > 1 ? `${side.label} · ` : ""}block ${side.layer}` : side.label, () => { show(page, [side.run]); draw(page); });
    name.setAttribute("aria-pressed", String(shown.includes(side.run)));
    if (page.depth || !shown.length || shown.includes(side.run)) return name;
    const beside = button("⫼", () => { show(page, [shown[0], side.run]); draw(page); });
    beside.setAttribute("aria-label", `Show ${side.label} beside ${page.sides[0].label}`);
    beside.title = "beside";
    return el("span", "pair", name, beside);
  }));
}
