// ---- shades: from each value to 0..1, over all readings of the page ---------------------------------------

const unit = (value) => Math.min(1, Math.max(0, value));

/** Find the range of the norms, and offer what the tokens can be shaded by. */
function measure(page) {
  const every = page.runs.flatMap((side) => side.tokens), log = (value) => Math.log(Math.max(value, 1e-12));
  const norms = every.map((token) => token.norm).filter((norm) => norm !== undefined).sort((a, b) => a - b);
  const at = (share) => (norms.length ? norms[Math.round(share * (norms.length - 1))] : 0);
  const low = at(0.02), high = at(0.98), wide = log(high) - log(low);
  page.ofNorm = (norm) => (wide > 1e-9 ? unit((log(norm) - log(low)) / wide) : 0.5);
  page.scales = { norm: [`norm ${short(low)}`, short(high)], reconstruction: ["cosine 0", "1"], change: ["same", "other words"] };
  const offered = [];
  if (page.sides.length === 2) offered.push("change");
  const none = page.transport && !every.some(wasRead);  // The header is not to grow at the first click.
  if (none || every.some((token) => token.cos !== undefined)) offered.push("reconstruction");
  if (none || norms.length) offered.push("norm");
  offered.push("none");
  if (String(offered) === String(page.offered)) return;
  page.offered = offered;
  const chosen = offered.includes(page.chosen) ? page.chosen : offered[0];
  page.at.shade.replaceChildren(page.at.shade.firstChild, ...offered.map((name) => {
    const input = el("input");
    Object.assign(input, { type: "radio", name: `shade${page.number}`, value: name, checked: name === chosen });
    input.addEventListener("change", () => shadeBy(page, (page.chosen = name)));
    return el("label", "", input, name);
  }));
  shadeBy(page, chosen);
}

function shadeBy(page, name) {
  page.box.dataset.shade = name;
  page.at.scale.hidden = !page.scales[name];
  if (page.scales[name]) [page.at.low.textContent, page.at.high.textContent] = page.scales[name];
}

/** Set what the style sheet shades a chip by: `--n` the norm, `--s` the score, `--c` the change. */
function shade(page, made, token, changed) {
  const set = (name, value) => made.style.setProperty(name, value.toFixed(3));
  if (token.norm !== undefined) set("--n", page.ofNorm(token.norm));
  if (token.cos !== undefined) set("--s", unit(token.cos));
  set("--c", changed);
}
