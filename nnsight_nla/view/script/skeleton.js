// ---- the page's own elements ------------------------------------------------------------------------------

/** Make the header, the places for text, details and table, and the footer; return them by name. */
function skeleton(page, title) {
  const named = (made, id) => { made.id = id; return made; };
  const heading = el("h1", "", title);
  heading.dir = "auto";
  const about = named(el("p"), "about"), state = el("span"), bar = named(el("div", "", state), "state");
  state.setAttribute("role", "status");
  bar.hidden = true;
  const shade = named(el("fieldset", "", el("legend", "", "shade by")), "shade");
  const low = named(el("span"), "low"), high = named(el("span"), "high");
  const scale = named(el("p", "", low, silent(el("i")), high), "scale");
  const label = el("label", "unseen", "Search the explanations"), query = named(el("input"), "query");
  label.htmlFor = "query";
  Object.assign(query, { type: "search", placeholder: "search explanations", autocomplete: "off", spellcheck: false });
  const count = named(el("output"), "count");
  count.setAttribute("for", "query");
  const search = el("div", "search", label, query, silent(el("kbd", "", "/")), count);
  const runs = named(el("nav"), "runs"), form = named(el("form"), "open");
  runs.setAttribute("aria-label", "Texts");
  runs.hidden = form.hidden = true;
  const texts = named(el("div"), "texts"), details = named(el("section"), "details");
  details.setAttribute("aria-label", "Explanation");
  details.setAttribute("aria-live", "polite");
  details.tabIndex = 0;
  const key = (name) => el("kbd", "", name);
  const keys = named(el("p", "", key("←"), key("→"), key("↑"), key("↓"), " move ", key("Enter"),
    page.transport ? " read, pin " : " pin ", key("/"), " search ", key("Esc"), page.transport ? " cancel, clear" : " clear"), "keys");
  const table = named(el("details", "", el("summary", "", "All explanations as a table"), el("div")), "table");
  page.box.replaceChildren(
    el("div", "top", bar, el("header", "", el("div", "what", heading, about), el("div", "tools", shade, scale, search))),
    el("main", "", el("div", "left", form, runs, texts), details, table),
    el("footer", "", keys),
  );
  return { heading, about, bar, state, shade, scale, low, high, query, count, runs, form, texts, details, keys, table };
}

function describe(page) {
  const each = (values) => listed([...new Set(values)]), sides = page.depth ? columns(page, page.sides[0]) : page.sides;
  page.at.about.textContent = sides.length === 0 ? "" : [
    `output of block${page.depth ? "s" : ""} ${each(sides.map((side) => side.layer))} of ${each(sides.map((side) => side.target))}`,
    `explained by ${each(sides.map((side) => side.verbalizer))}`,
    `${each(sides.map((side) => side.tokens.length))} tokens`,
  ].join(" · ");
}
