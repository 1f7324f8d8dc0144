// ---- experiments: compare two tokens, patch a residual into another place, steer by an edited text -----------------

const LARGEST_DOSE = 3;

/** Return the buttons of a token's experiments; by depth, those of one layer. */
function experiments(page, side, r, i) {
  const { run, tokens, layer } = side, here = [run, tokens[i].p];
  const found = [
    button("compare with …", () => pick(page, "the token to compare it with.", layer, (there) => request(page, { type: "compare", a: here, b: there }))),
    button("patch into …", () => pick(page, "the token whose residual this one replaces.", layer, (there) => request(page, { type: "patch", source: here, target: there }))),
  ];
  if (tokens[i].x !== undefined) found.push(
    button("edit, steer", () => { page.result = editor(page, here, tokens[i].x); page.version += 1; draw(page); }),
    button("3 samples", () => explain(page, r, [i], 3)),
  );
  return found;
}

/** Let the next token that is clicked, at this layer, be the second one of an experiment; Escape gives it up. */
function pick(page, asks, layer, then) {
  page.picked = ({ r, i }) => {
    const shown = columns(page, page.sides[r]), found = shown.find((each) => each.layer === layer) || shown[0];
    page.picked = null;
    hint(page);
    then([found.run, found.tokens[i].p]);
  };
  hint(page, `${touched() ? "Tap" : "Click"} ${asks}`);
  page.boxes[page.active.r].focus({ preventScroll: true });
}

/** Say what the page waits for, above the text, where the state of the connection is said otherwise. */
function hint(page, text = "") {
  page.at.state.textContent = text || STATES[page.state] || "";
  page.at.bar.hidden = !page.at.state.textContent;
  page.at.stop.hidden = !page.picked;
  page.box.classList.toggle("picking", Boolean(page.picked));
}

/** Show why there is no result: of steering in its editor, whose text is kept, else as a card that can be closed. */
function tell(page, text, type) {
  if (type === "steer" && page.editing) page.editing.replaceChildren(paragraph("none", text));
  else page.result = outcomeCard(page, "no result", paragraph("none", text));
  page.version += 1;
  draw(page);
}

function request(page, message) {
  ask(page, message);
  page.result = outcomeCard(page, message.type, el("p", "unread", "Running …"));
  page.version += 1;
  draw(page);
}

function outcomeCard(page, title, ...children) {
  const close = button("×", () => { page.result = null; page.version += 1; draw(page); }, "close");
  close.setAttribute("aria-label", "close");
  return el("div", "card result", el("div", "head", el("span", "title", title), close), ...children);
}

const nameOf = (page, [run, position]) => {
  const side = page.runs.find((each) => each.run === run), token = side && side.tokens.find((each) => each.p === position);
  return `${token ? token.w || token.t : "?"}, position ${position}${page.runs.length > 1 && side ? ` · ${side.label}` : ""}${page.depth && side ? ` · block ${side.layer}` : ""}`;
};

const OUTCOMES = {
  compare(page, { texts, cosine }, { a: first, b: second }) {
    const [a, b] = texts.map(prose);
    return [
      el("p", "title", nameOf(page, first)), el("div", "said", ...paragraphs(page, a, b, 0)),
      el("p", "title", nameOf(page, second)), el("div", "said", ...paragraphs(page, b, a, 1)),
      el("dl", "", el("div", "", el("dt", "", "cosine of the two residuals"), el("dd", "", short(cosine)))),
    ];
  },
  patch(page, { cell, kl, next: rows }, { source }) {
    const [run, position] = cell, r = page.sides.findIndex((side) => side.run === run);
    const i = r < 0 ? -1 : page.sides[r].tokens.findIndex((token) => token.p === position);
    if (i >= 0) {
      page.sides[r].cell = i;
      again(page, page.sides.map((side) => side.run));
      pin(page, { r, i }, true);
    }
    return [
      paragraph("against", `The residual of ${nameOf(page, source)} is now at ${nameOf(page, cell)}.`),
      el("dl", "", el("div", "", el("dt", "", "KL of the output, in nats"), el("dd", "", short(kl)))),
      beforeAfter(rows),
    ];
  },
  steer(page, { continuations, next: rows, explanation }, { text, dose }) {
    const list = el("dl", "facts", ...continuations.map((each) => el("div", "", el("dt", "", `dose ${short(each.dose)}`), el("dd", "", prose(each.text) || "The text ends here."))));
    const before = page.steered || text;
    return [
      el("p", "title", "the target goes on"), list, rows && rows.length ? beforeAfter(rows) : null,
      explanation === undefined || explanation === null ? null : el("p", "title", `the explanation at dose ${short(dose)}`),
      explanation === undefined || explanation === null ? null : el("div", "said", ...paragraphs(page, prose(explanation), before, 1)),
    ].filter(Boolean);
  },
};

function outcome(page, message) {
  const sent = page.asked.get(message.id);
  if (!sent || !Object.hasOwn(OUTCOMES, message.kind)) return;
  const shown = OUTCOMES[message.kind](page, message, sent);
  if (message.kind === "steer" && page.editing) page.editing.replaceChildren(...shown);
  else page.result = outcomeCard(page, message.kind, ...shown);
  page.version += 1;
  draw(page);
}

/** Return a table of the likeliest next tokens, before and after. */
function beforeAfter(rows) {
  const shown = rows.map(([token, before, after]) => [signs(token), percent(before), percent(after)]);
  return tabulated("the target's next token", ["token", "before", "after"], shown);
}

/** Return the card in which an explanation is edited; its vector is added in the dose of the slider. */
function editor(page, [run, position], text) {
  const field = el("textarea"), slider = el("input"), shown = el("output", "", "1"), place = el("div");
  Object.assign(field, { id: "edited", value: text, rows: 4 });
  field.dir = "auto";
  Object.assign(slider, { id: "dose", type: "range", min: -LARGEST_DOSE, max: LARGEST_DOSE, step: 0.25, value: 1 });
  const labels = [el("label", "title", "the explanation, edited"), el("label", "title", "dose ", shown)];
  [labels[0].htmlFor, labels[1].htmlFor] = ["edited", "dose"];
  const go = () => {
    if (field.value.trim() === text.trim()) {
      place.replaceChildren(el("p", "unread", "Edit the explanation first: the target is steered from what it says to what you write."));
      return;
    }
    page.editing = place;
    page.steered = text;
    place.replaceChildren(el("p", "unread", "Running …"));
    ask(page, { type: "steer", run, position, text: field.value, dose: Number(slider.value) });
  };
  slider.addEventListener("input", () => { shown.textContent = short(Number(slider.value)); });
  slider.addEventListener("change", () => { if (page.editing === place) go(); });
  const form = el("div", "editor", labels[0], field, labels[1], slider, el("div", "actions", button("steer", go)), place);
  return outcomeCard(page, `steer at ${nameOf(page, [run, position])}`, form);
}
