"use strict";
(() => {
  const data = JSON.parse(document.getElementById("readings").textContent);
  const sides = data.readings;
  const two = sides.length === 2;
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;
  const details = byId("details"), texts = byId("texts"), query = byId("query"), count = byId("count");

  /** An element with classes and children; strings become text nodes, never markup. */
  function el(name, classes, ...children) {
    const made = document.createElement(name);
    if (classes) made.className = classes;
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  // ---- which tokens are opposite each other, and how much their explanations differ ----------------
  const opposite = [new Map(), new Map()];
  for (const [a, b] of data.pairs || []) { opposite[0].set(a, b); opposite[1].set(b, a); }
  const words = (text) => (text || "").split(/\s+/).filter(Boolean);

  function change(a, b) {
    if (a.x === b.x) return 0;
    const left = new Map(), one = words(a.x), other = words(b.x);
    for (const word of one) left.set(word, (left.get(word) || 0) + 1);
    let common = 0;
    for (const word of other) {
      const have = left.get(word) || 0;
      if (have) { common += 1; left.set(word, have - 1); }
    }
    return Math.max(0.08, 1 - (2 * common) / Math.max(1, one.length + other.length));
  }

  // ---- shades: from each value to 0..1, over all readings of the page -------------------------------
  const every = sides.flatMap((side) => side.tokens);
  const sorted = (key) => every.map((t) => t[key]).filter((v) => v !== undefined).sort((a, b) => a - b);
  const norms = sorted("norm"), scores = sorted("cos");
  const at = (list, share) => list[Math.round(share * (list.length - 1))];
  const log = (value) => Math.log(Math.max(value, 1e-12));
  const low = norms.length ? at(norms, 0.02) : 0, high = norms.length ? at(norms, 0.98) : 0;
  const unit = (value) => Math.min(1, Math.max(0, value));
  /** Set what the style sheet shades by: `--n` the norm, `--s` the score, `--c` the change. */
  function shade(made, token, changed) {
    const wide = log(high) - log(low), set = (name, value) => made.style.setProperty(name, value.toFixed(3));
    if (token.norm !== undefined) set("--n", wide > 1e-9 ? unit((log(token.norm) - log(low)) / wide) : 0.5);
    if (token.cos !== undefined) set("--s", unit(token.cos));
    if (changed) set("--c", changed);
  }
  const short = (value) => String(Number(value.toPrecision(3)));
  const scales = { none: null, norm: [`norm ${short(low)}`, short(high)], score: ["cosine 0", "1"], change: ["same", "other words"] };
  const offered = ["norm"];
  if (scores.length) offered.push("score");
  if (two) offered.unshift("change");
  root.classList.toggle("two", two);
  offered.push("none");
  function shadeBy(name) {
    root.dataset.shade = name;
    byId("scale").hidden = !scales[name];
    if (scales[name]) [byId("low").textContent, byId("high").textContent] = scales[name];
  }
  for (const name of offered) {
    const input = el("input");
    Object.assign(input, { type: "radio", name: "shade", value: name, checked: name === offered[0] });
    input.addEventListener("change", () => shadeBy(name));
    byId("shade").append(el("label", "", input, name));
  }
  shadeBy(offered[0]);

  // ---- the text: every chip is made once --------------------------------------------------------------
  // Runs of text end at line breaks; runs outside the view are laid out when the browser is idle.
  const RUN = 80, LINE = two ? 40 : 80, ROW = 2.05;
  const chips = sides.map(() => []), boxes = [], COLORS = ["var(--score)", "var(--change)"];
  const answers = new Set(["reply", "assistant", "model"]);
  const blank = el("span", "t"), space = el("span", "ws", "␣");
  blank.setAttribute("role", "option");
  blank.setAttribute("aria-selected", "false");
  function chip(r, i) {
    const token = sides[r].tokens[i], made = blank.cloneNode();
    let text = token.t;
    if (text[0] === "␣") { made.append(space.cloneNode(true)); text = text.slice(1); }
    if (!/[␣↵⇥]/.test(text)) made.append(text);
    else for (const piece of text.split(/([␣↵⇥]+)/)) {
      if (piece) made.append(/^[␣↵⇥]/.test(piece) ? el("span", "ws", piece) : piece);
    }
    if (token.more) made.append("…");
    if (!token.t) made.append(el("span", "ws", "∅"));
    made.id = `t${r}-${i}`;
    made.setAttribute("aria-label", `${token.p}: ${spoken(token)}`);
    const read = token.x !== undefined || token.err !== undefined;
    if (!read) { made.classList.add("unread"); made.setAttribute("aria-disabled", "true"); }
    if (token.err) made.classList.add("failed");
    else if (token.warn) made.classList.add("noted");
    let changed = 0;
    if (two && read) {
      const partner = opposite[r].get(i);
      changed = partner === undefined ? 1 : change(token, sides[1 - r].tokens[partner]);
      if (changed) made.classList.add("changed");
      if (partner === undefined || sides[1 - r].tokens[partner].t !== token.t) made.classList.add("other");
    }
    shade(made, token, changed);
    return made;
  }
  function spoken(token) {
    const words = token.t.replaceAll("␣", " ").replaceAll("↵", " newline ").replaceAll("⇥", " tab ").trim();
    return words || "space";
  }
  sides.forEach((side, r) => {
    const box = el("div", "tokens"), section = el("section", "");
    box.id = `text${r}`;
    box.tabIndex = 0;
    box.setAttribute("role", "listbox");
    box.setAttribute("aria-label", `Tokens of ${side.label}`);
    box.setAttribute("aria-controls", "details");
    const parts = new Set(side.tokens.map((t) => t.part));
    parts.delete("template");
    let part = null, name = null, run = null, long = 0, rows = 0, row = 0;
    const end = () => {
      if (run) run.style.containIntrinsicBlockSize = `auto ${((rows + (row > 0)) * ROW).toFixed(1)}em`;
      run = null;
    };
    side.tokens.forEach((token, i) => {
      if (token.part !== name) {
        name = token.part;
        const talk = name !== "template" && (parts.size > 1 || name !== "prompt");
        part = el("div", "part");
        part.classList.toggle("template", name === "template");
        part.classList.toggle("talk", talk);
        part.classList.toggle("answer", answers.has(name));
        part.setAttribute("role", "group");
        part.setAttribute("aria-label", name);
        if (talk) { const who = el("span", "who", name); who.setAttribute("aria-hidden", "true"); part.append(who); }
        box.append(part);
        end();
      }
      if (!run) { part.append((run = el("div", "run"))); long = rows = row = 0; }
      const made = chip(r, i);
      chips[r].push(made);
      run.append(made);
      long += 1;
      row += token.t.length + 1;
      if (token.br) { run.append(el("br")); rows += Math.ceil(row / LINE); row = 0; }
      else if (row >= LINE) { rows += 1; row = 0; }
      if (token.br && long >= RUN) end();
    });
    end();
    if (two) {
      section.style.setProperty("--side", COLORS[r]);
      const dot = el("i");
      dot.setAttribute("aria-hidden", "true");
      section.append(el("h2", "", dot, side.label));
    }
    section.append(box);
    boxes.push(box);
    texts.append(section);
  });
  byId("about").textContent = [
    `output of block ${sides[0].layer} of ${[...new Set(sides.map((s) => s.target))].join(" and ")}`,
    `explained by ${[...new Set(sides.map((s) => s.verbalizer))].join(" and ")}`,
    `${[...new Set(sides.map((s) => s.tokens.length))].join(" and ")} tokens`,
  ].join(" · ");

  // ---- the details show the pinned token, else the hovered one, else the active one --------------------
  const last = sides[0].tokens.findLastIndex((t) => t.x !== undefined || t.err !== undefined);
  let active = { r: 0, i: last }, hovered = null, pinned = null, drawn = "", lit = [], needle = "";
  const same = (a, b) => a && b && a.r === b.r && a.i === b.i;
  const readable = (r, i) => chips[r][i] && !chips[r][i].classList.contains("unread");

  /** Return `text` as nodes, with a <mark> around each match of the search. */
  function marked(text) {
    if (!needle) return [text];
    const nodes = [], lower = text.toLowerCase();
    if (lower.length !== text.length) return [text];
    let from = 0;
    for (let to = lower.indexOf(needle); to >= 0; to = lower.indexOf(needle, from)) {
      nodes.push(text.slice(from, to), el("mark", "", text.slice(to, to + needle.length)));
      from = to + needle.length;
    }
    return [...nodes, text.slice(from)];
  }

  /** Return the paragraphs of `text`; words that `other` lacks are in an element named `name`. */
  function paragraphs(text, other, name) {
    const keep = other === undefined || other === text ? null : common(text, other);
    let word = 0;
    return text.split(/\n+/).map((line) => {
      const made = el("p");
      made.dir = "auto";
      if (!keep) made.append(...marked(line));
      else {
        let run = null;
        for (const piece of line.split(/(\s+)/)) {
          const own = piece.trim() && !keep.has(word);
          if (piece.trim()) word += 1;
          if (own) { if (!run) made.append((run = el(name))); run.append(...marked(piece)); }
          else if (piece.trim() || !run) { run = null; made.append(...marked(piece)); }
          else made.append((run = null, piece));
        }
      }
      return made;
    });
  }

  /** Return the indices of the words of `text` in its longest common subsequence with `other`. */
  function common(text, other) {
    const a = words(text), b = words(other), wide = b.length + 1;
    if (a.length * b.length > 1e6) return null;
    const best = new Uint16Array((a.length + 1) * wide);
    for (let i = a.length - 1; i >= 0; i -= 1) for (let j = b.length - 1; j >= 0; j -= 1) {
      best[i * wide + j] = a[i] === b[j] ? best[(i + 1) * wide + j + 1] + 1
        : Math.max(best[(i + 1) * wide + j], best[i * wide + j + 1]);
    }
    const kept = new Set();
    for (let i = 0, j = 0; i < a.length && j < b.length;) {
      if (a[i] === b[j]) { kept.add(i); i += 1; j += 1; }
      else if (best[(i + 1) * wide + j] >= best[i * wide + j + 1]) i += 1;
      else j += 1;
    }
    return kept;
  }

  function card(r, i, against) {
    const token = sides[r].tokens[i], made = el("div", "card");
    if (two) made.style.setProperty("--side", COLORS[r]);
    const name = el("span", "token", token.t || "∅");
    name.dir = "auto";
    const head = el("div", "head", name, el("span", "where", `position ${token.p}${two ? ` · ${sides[r].label}` : token.part === "prompt" ? "" : ` · ${token.part}`}`));
    if (token.more) head.append(el("span", "where", `… ${token.more.toLocaleString("en")} more characters`));
    if (same(pinned, { r, i })) head.append(el("span", "pin", "pinned"));
    const said = el("div", "said");
    if (token.err !== undefined) said.append(el("p", "none", `No text, because this vector ${token.err}`));
    else if (token.x === undefined) said.append(el("p", "unread", "This position was not read."));
    else said.append(...paragraphs(token.x, against && against.x, r === 0 ? "del" : "ins"));
    made.append(head, said);
    const figures = [["norm", token.norm, against && against.norm], ["reconstruction cosine", token.cos, against && against.cos],
      ["FVE", token.fve, against && against.fve]].filter(([, value]) => value !== undefined);
    if (figures.length || token.grade) {
      const list = el("dl");
      if (token.grade) {
        const grade = el("dd", `grade ${token.grade}`, token.grade);
        if (token.trust) grade.title = token.trust;
        list.append(el("div", "", el("dt", "", "reconstruction"), grade));
      }
      for (const [label, value, old] of figures) {
        const shown = el("dd", "", short(value));
        if (r === 1 && old !== undefined && short(old) !== short(value)) {
          shown.append(" ", el("small", "", `${value > old ? "+" : "−"}${short(Math.abs(value - old))}`));
        }
        list.append(el("div", "", el("dt", "", label), shown));
      }
      made.append(list);
    }
    if (token.shows) made.append(el("p", "shows", token.shows));
    if (token.warn) made.append(el("ul", "notes", ...token.warn.map((note) => el("li", "", note))));
    return made;
  }

  function draw() {
    const shown = pinned || hovered || active;
    const key = JSON.stringify([shown, pinned, needle]);
    if (key === drawn) return;
    drawn = key;
    for (const old of lit) old.classList.remove("on", "partner", "pinned");
    lit = [];
    const cards = [];
    if (shown.i >= 0) {
      const { r, i } = shown, own = chips[r][i];
      own.classList.add("on");
      if (pinned) own.classList.add("pinned");
      lit.push(own);
      const partner = opposite[r].get(i);
      if (partner !== undefined) {
        const other = chips[1 - r][partner];
        other.classList.add("partner");
        lit.push(other);
        const [a, b] = r === 0 ? [i, partner] : [partner, i];
        cards.push(card(0, a, sides[1].tokens[b]), card(1, b, sides[0].tokens[a]));
      } else cards.push(card(r, i));
    } else cards.push(el("p", "hint", "No position of this text was read."));
    if (needle) cards.push(results());
    details.replaceChildren(...cards);
  }

  // ---- search -----------------------------------------------------------------------------------------
  let hits = [];
  function search() {
    needle = query.value.trim().toLowerCase();
    hits = [];
    sides.forEach((side, r) => side.tokens.forEach((token, i) => {
      const hit = needle !== "" && token.x !== undefined && token.x.toLowerCase().includes(needle);
      chips[r][i].classList.toggle("hit", hit);
      if (hit) hits.push({ r, i });
    }));
    texts.classList.toggle("searching", needle !== "");
    count.textContent = needle ? `${hits.length} of ${every.length}` : "";
    draw();
  }
  function results() {
    const box = el("div", "card"), list = el("ul", "found");
    for (const { r, i } of hits.slice(0, 100)) {
      const token = sides[r].tokens[i], place = token.x.toLowerCase().indexOf(needle);
      const from = Math.max(0, place - 40), button = el("button", "", el("code", "", token.t),
        from ? "…" : "", ...marked(token.x.slice(from, place + needle.length + 60).replace(/\s+/g, " ")));
      button.type = "button";
      button.addEventListener("click", () => pin({ r, i }, true));
      list.append(el("li", "", button));
    }
    box.append(hits.length ? list : el("p", "hint", "No matches."));
    if (hits.length > 100) box.append(el("p", "hint", `and ${hits.length - 100} more`));
    return box;
  }
  function nextHit(step) {
    if (!hits.length) return;
    const order = (it) => it.r * 1e7 + it.i, here = order(pinned || active);
    const after = step > 0 ? hits.find((it) => order(it) > here) : hits.findLast((it) => order(it) < here);
    pin(after || (step > 0 ? hits[0] : hits[hits.length - 1]), true);
  }
  query.addEventListener("input", search);

  // ---- moving, pinning -----------------------------------------------------------------------------------
  function activate(next, follow) {
    active = next;
    boxes.forEach((box, r) => {
      if (r === active.r) box.setAttribute("aria-activedescendant", chips[r][active.i].id);
      else box.removeAttribute("aria-activedescendant");
    });
    if (follow) chips[active.r][active.i].scrollIntoView({ block: "nearest" });
  }
  function pin(next, follow) {
    if (pinned) chips[pinned.r][pinned.i].setAttribute("aria-selected", "false");
    pinned = next;
    if (pinned) {
      chips[pinned.r][pinned.i].setAttribute("aria-selected", "true");
      activate(pinned, follow);
    }
    try { history.replaceState(null, "", pinned ? `#t${pinned.r}-${pinned.i}` : "#"); } catch { /* in a sandbox */ }
    draw();
  }
  function move(next) {
    if (!next || !readable(next.r, next.i)) return;
    hovered = null;
    activate(next, true);
    if (pinned) pin(next, true);
    draw();
  }
  function along(step) {
    let i = active.i + step;
    while (i >= 0 && i < chips[active.r].length && !readable(active.r, i)) i += step;
    return { r: active.r, i };
  }
  function across(step) {
    const row = chips[active.r], here = row[active.i].getBoundingClientRect();
    const middle = (here.left + here.right) / 2;
    let line = null, best = null, near = Infinity;
    for (let i = active.i + step; i >= 0 && i < row.length; i += step) {
      const box = row[i].getBoundingClientRect();
      if (step > 0 ? box.top < here.top + here.height * 0.6 : box.top > here.top - here.height * 0.6) continue;
      if (line !== null && Math.abs(box.top - line) > here.height * 0.6) break;
      if (!readable(active.r, i)) continue;
      line = box.top;
      const off = Math.abs((box.left + box.right) / 2 - middle);
      if (off < near) { near = off; best = { r: active.r, i }; }
    }
    return best;
  }
  const find = (target) => {
    const it = target instanceof Element ? target.closest(".t") : null;
    if (!it || it.classList.contains("unread")) return null;
    const [r, i] = it.id.slice(1).split("-").map(Number);
    return { r, i };
  };
  texts.addEventListener("pointerover", (event) => { hovered = find(event.target) || hovered; draw(); });
  texts.addEventListener("pointerleave", () => { hovered = null; draw(); });
  texts.addEventListener("click", (event) => {
    const next = find(event.target);
    if (next) pin(same(next, pinned) ? null : next);
  });
  boxes.forEach((box, r) => {
    box.addEventListener("focus", () => {
      if (active.r === r || active.i < 0) return;
      const there = opposite[active.r].get(active.i);
      if (there !== undefined && readable(r, there)) move({ r, i: there });
      else move({ r, i: sides[r].tokens.findLastIndex((_, i) => readable(r, i)) });
    });
    box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || active.i < 0) return;
      const go = {
        ArrowRight: () => move(along(1)), ArrowLeft: () => move(along(-1)),
        ArrowDown: () => move(across(1)), ArrowUp: () => move(across(-1)),
        Home: () => move({ r, i: chips[r].findIndex((_, i) => readable(r, i)) }),
        End: () => move({ r, i: chips[r].findLastIndex((_, i) => readable(r, i)) }),
        Enter: () => pin(same(active, pinned) ? null : active),
        " ": () => pin(same(active, pinned) ? null : active),
      }[event.key];
      if (go) { event.preventDefault(); go(); }
    });
  });
  query.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); nextHit(event.shiftKey ? -1 : 1); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !(event.target instanceof HTMLInputElement && event.target.type === "search")) {
      event.preventDefault();
      query.focus();
      query.select();
    } else if (event.key === "Escape") {
      event.preventDefault();
      if (query.value) { query.value = ""; search(); } else pin(null);
      if (document.activeElement === query) boxes[active.r].focus();
    }
  });

  // ---- the table below the text, made when it is opened ----------------------------------------------------
  byId("table").addEventListener("toggle", () => {
    const place = byId("table").querySelector("div");
    if (place.firstChild) return;
    for (const side of sides) {
      const body = el("tbody"), head = el("tr");
      for (const title of ["position", "token", "explanation", "norm", "reconstruction cosine", "notes"]) {
        const cell = el("th", "", title);
        cell.scope = "col";
        head.append(cell);
      }
      for (const token of side.tokens) {
        const text = token.x ?? (token.err !== undefined ? `no text: this vector ${token.err}` : "not read");
        const cells = [token.p, token.t, text, token.norm ?? "", token.cos ?? "", (token.warn || []).join("\n")];
        body.append(el("tr", "", ...cells.map((value) => { const cell = el("td", "", String(value)); cell.dir = "auto"; return cell; })));
      }
      place.append(el("table", "", el("caption", "", side.label), el("thead", "", head), body));
    }
  });
  for (const id of ["shade", "keys", "table", "query"]) byId(id).hidden = false;
  // A screen reader does not see a run before it is laid out.
  const waiting = [...texts.querySelectorAll(".run")];
  const later = window.requestIdleCallback || ((go) => setTimeout(go, 20));
  function rest() {
    if (!waiting.length) return;
    waiting.shift().style.contentVisibility = "visible";
    later(rest);
  }
  requestAnimationFrame(() => later(rest));
  const linked = /^#t([01])-(\d+)$/.exec(location.hash);
  if (linked && readable(Number(linked[1]), Number(linked[2]))) {
    // The browser would scroll a page that is loaded again to where it was, after this.
    try { history.scrollRestoration = "manual"; } catch { /* in a sandbox */ }
    pin({ r: Number(linked[1]), i: Number(linked[2]) }, true);
  } else if (active.i >= 0) activate(active, false);
  draw();
})();
