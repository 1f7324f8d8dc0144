// ---- the table below the text, made when it is opened ---------------------------------------------------------

function table(page) {
  const place = page.at.table.querySelector("div");
  place.replaceChildren();
  if (page.depth) place.append(byLayer(page));
  else for (const side of page.sides) place.append(ofSide(side));
}

function ofSide(side) {
  const rows = side.tokens.map((token, i) => [
    token.p, placed(side.tokens, i), shownText(token), token.norm ?? "", token.cos ?? "", (token.warn || []).join("\n"),
  ]);
  return tabulated(side.label, ["position", "token", "explanation", "norm", "reconstruction cosine", "notes"], rows);
}

/** Return a table with a row per token and a column per layer. */
function byLayer(page) {
  const sides = layers(page, page.sides[0]), rows = sides[0].tokens.map((token, i) => [token.p, placed(sides[0].tokens, i), ...sides.map((side) => shownText(side.tokens[i]))]);
  return tabulated("by depth", ["position", "token", ...sides.map((side) => `block ${side.layer}`)], rows);
}

/** Return a token as text; of several that are one character, which one it is. */
function placed(tokens, i) {
  const members = group(tokens, i), text = tokens[members[0]].w || tokens[i].t;
  return members.length === 1 ? text : `${text} ${members.indexOf(i) + 1}/${members.length}`;
}

const shownText = (token) => token.x ?? (token.err !== undefined ? `no text: this vector ${token.err}` : "not read");

function tabulated(caption, titles, rows) {
  const head = el("tr"), body = el("tbody");
  for (const [column, title] of titles.entries()) {
    const cell = el("th", rows.some((row) => typeof row[column] === "number") ? "number" : "", title);
    cell.scope = "col";
    head.append(cell);
  }
  for (const row of rows) {
    body.append(el("tr", "", ...row.map((value) => {
      const cell = el("td", typeof value === "number" ? "number" : "", String(value));
      cell.dir = "auto";
      return cell;
    })));
  }
  return el("div", "wide", el("table", "", el("caption", "", caption), el("thead", "", head), body));
}
