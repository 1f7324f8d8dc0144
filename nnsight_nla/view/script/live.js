// ---- texts of messages: what is invisible is escaped, as escaping.py does it -------------------------------------------

const escaped = (text, kept) => text.replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu, (char) => (
  kept.includes(char) ? char : `\\u${char.codePointAt(0).toString(16).padStart(4, "0")}`));
const prose = (text) => escaped(String(text), "\n\t\u200c\u200d");
const signs = (token) => escaped(String(token).replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥"), "");

// ---- live: a transport carries messages to what reads the tokens ---------------------------------------------------
// {send(message), receive(callback), state(callback)}; see `Session` for the messages.

/** Return whether the page is touched rather than pointed at, with no keyboard to speak of. */
const touched = () => matchMedia("(pointer: coarse)").matches;
const unasked = () => (touched() ? "Not read yet: tap it." : "Not read yet: click it, or press Enter.");

const STATES = {
  lost: "The connection is lost. What was read stays here; what waits is asked for again when it is back.",
  closed: "The session has ended. What was read stays here; nothing more can be read.",
};

/** Return whether a request has a result to show, rather than tokens or a text. */
const hasResult = ({ type }) => type !== "explain" && type !== "open";

function connect(page) {
  page.asked = new Map();
  page.last = 0;
  const { form } = page.at, label = el("label", "unseen", "A text to read"), field = el("textarea");
  Object.assign(field, { id: "prompt", rows: 1, placeholder: "another text to read", spellcheck: false });
  label.htmlFor = "prompt";
  const go = el("button", "", "open");
  page.at.wait = button("read all", () => (page.asked.size ? cancel(page) : readAll(page)));
  form.append(label, field, go, page.at.wait);
  page.at.bar.append(page.at.stop = button("cancel", () => giveUp(page)));
  form.hidden = false;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (field.value.trim()) ask(page, { type: "open", text: field.value });
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); form.requestSubmit(); }
  });
  page.transport.receive((message) => { if (page.transport) receive(page, message); });
  page.transport.state((state) => { if (page.transport) became(page, state); });
}

/** Send a message with a number of its own; return that number. */
function ask(page, message) {
  page.last += 1;
  const sent = { ...message, id: page.last };
  page.asked.set(sent.id, sent);
  waits(page);
  page.transport.send(sent);
  return sent.id;
}

/** Let the button that reads all cancel what waits, while anything does. */
function waits(page) { page.at.wait.textContent = page.asked.size ? "cancel" : "read all"; }

/** Ask for the explanations of tokens that have none; with `samples`, of all of them. */
function explain(page, r, places, samples) {
  for (const side of columns(page, page.sides[r])) explainIn(page, side, places, samples);
}

function explainIn(page, { run, tokens }, places, samples) {
  const wanted = places.filter((i) => samples || !wasRead(tokens[i])).filter((i) => !tokens[i].live || tokens[i].live.state === "failed");
  if (!wanted.length || page.state === "closed") return;
  const more = samples ? { samples } : {};
  const id = ask(page, { type: "explain", run, positions: wanted.map((i) => tokens[i].p), ...more });
  for (const i of wanted) tokens[i].live = { id, state: "waiting", before: 0 };
  changed(page, run, wanted);
}

function readAll(page) {
  page.sides.forEach((side, r) => explain(page, r, side.tokens.map((_, i) => i)));
}

/** Cancel what waits; return whether anything did. */
function cancel(page) {
  const waiting = [...page.asked.values()];
  for (const message of waiting) {
    page.transport.send({ type: "cancel", id: message.id });
    release(page, message.id);
    if (hasResult(message)) tell(page, "Cancelled.", message.type);
  }
  if (waiting.length) hint(page);
  return waiting.length > 0;
}

/** Forget a request, and what its tokens wait for; with `why`, say so in their place. */
function release(page, id, why) {
  page.asked.delete(id);
  waits(page);
  for (const { run, tokens } of page.runs) {
    const waiting = tokens.flatMap((token, i) => (token.live && token.live.id === id ? [i] : []));
    for (const i of waiting) {
      if (why) tokens[i].live = { id: 0, state: "failed", why };
      else delete tokens[i].live;
    }
    if (waiting.length) changed(page, run, waiting);
  }
}

/** Draw again what is shown of these tokens. */
function changed(page, run, places) {
  const r = page.sides.findIndex((side) => side.run === run);
  if (r >= 0) for (const i of places) {
    dress(page, r, lastOf(page.sides[r].tokens, i), page.chips[r][i]);
    const partner = page.opposite[r].get(i);
    if (partner !== undefined) dress(page, 1 - r, partner, page.chips[1 - r][partner]);
  }
  page.version += 1;
  if (page.due) return;
  page.due = true;
  requestAnimationFrame(() => { page.due = false; draw(page); });
}

function became(page, state) {
  const before = page.state;
  page.state = state;
  hint(page);
  page.box.classList.toggle("away", Boolean(STATES[state]));
  const waiting = [...page.asked.values()];
  for (const message of waiting) {
    if (state === "closed") {
      release(page, message.id, "The session ended before this was read.");
      if (message.type !== "explain") tell(page, "The session ended before there was a result.", message.type);
    } else if (state === "lost" && hasResult(message)) {
      release(page, message.id);
      tell(page, "The connection was lost before there was a result: ask again.", message.type);
    } else if (state === "open" && before === "lost") page.transport.send(message);
  }
}

const RECEIVED = {
  run(page, message) { arrived(page, message); },
  queued(page, { id, position, before }) {
    const sent = page.asked.get(id);
    if (sent) update(page, sent.run, position, (token) => { if (token.live) token.live = { id, state: "waiting", before }; });
  },
  text(page, { id, run, position, text }) {
    if (page.asked.has(id)) update(page, run, position, (token) => { token.live = { id, state: "text", text: prose(text) }; });
  },
  token(page, { run, position, token: fields }) {
    update(page, run, position, (token) => {
      for (const name of Object.keys(token)) if (!["p", "t", "w", "in", "br", "part", "more"].includes(name)) delete token[name];
      Object.assign(token, fields);
    });
    measure(page);
  },
  result(page, message) { outcome(page, message); },
  done(page, { id }) { release(page, id); },
  cancelled(page, { id }) { release(page, id); },
  error(page, { id, message }) {
    const sent = page.asked.get(id);
    if (id !== undefined && !sent) return;  // It was cancelled.
    if (sent) release(page, id, prose(message));
    if (!sent || sent.type !== "explain") tell(page, prose(message), sent && sent.type);
  },
};

function receive(page, message) {
  if (Object.hasOwn(RECEIVED, message.type)) RECEIVED[message.type](page, message);
}

function update(page, run, position, alter) {
  const side = page.runs.find((each) => each.run === run);
  const i = side ? side.tokens.findIndex((token) => token.p === position) : -1;
  if (i < 0) return;
  alter(side.tokens[i]);
  changed(page, run, [i]);
}

/** Take in a text: a new one, or one that is there already, whose place it takes. */
function arrived(page, { id, run, reading, prompt }) {
  const side = { ...reading, run, ...(prompt === undefined ? {} : { prompt }) }, held = page.runs.findIndex((each) => each.run === run);
  const shown = page.sides.map((each) => each.run), sent = page.asked.get(id);
  if (held >= 0) {
    page.runs[held].tokens.forEach(({ live }, i) => {
      if (live && side.tokens[i] && !wasRead(side.tokens[i])) side.tokens[i].live = live;
    });
    page.runs[held] = side;
  } else page.runs.push(side);
  if (sent && sent.type === "open") show(page, [run]);
  else if (sent && sent.type === "patch") show(page, [sent.target[0], run]);
  else if (!shown.length) show(page, [run]);
  else if (shown.includes(run) || (prompt !== undefined && page.sides[0].prompt === prompt)) again(page, shown);
  else picker(page);
  if (!page.chose) follow(page);
  page.version += 1;
  draw(page);
}

/** Show the same texts again, whose tokens may be others; what is pinned stays so. */
function again(page, shown) {
  const { pinned, active } = page;
  show(page, shown);
  if (pinned && readable(page, pinned.r, pinned.i)) pin(page, pinned);
  else if (readable(page, active.r, active.i)) activate(page, active, false);
}
