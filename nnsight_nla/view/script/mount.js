// ---- a page in an element of a document: a file's body, a server's, or a notebook's cell ----------------------------

const SHORT = 60;  // Up to this many tokens, the table below the text is open from the first.
let mounted = 0;

/**
 * Show readings in an element; return {destroy()}.
 * @param root The element; the page takes its place.
 * @param data {title, readings, pairs, depth}, as page.py writes it; of a live page it may hold no reading yet.
 * @param transport What reads tokens; without one, the page shows what was read.
 */
function mount(root, data, transport = null, own = false) {
  root.classList.add("nla");
  root.classList.toggle("inside", !own);
  root.classList.toggle("live", Boolean(transport));
  const page = {
    box: root, own, transport, number: (mounted += 1), pairs: data.pairs,
    runs: (data.readings || []).map((side, run) => ({ run, ...(data.depth ? { prompt: 0 } : {}), ...side })), needle: "", hits: [], version: 0, drawn: "",
  };
  page.at = skeleton(page, data.title || "Reading");
  page.at.table.addEventListener("toggle", () => { if (page.at.table.open) table(page); });
  show(page, page.runs.slice(0, data.depth ? 1 : 2).map((side) => side.run));
  pointers(page);
  const quiet = keys(page);
  if (transport) connect(page);
  page.at.table.open = !transport && page.runs.every((side) => side.tokens.length <= SHORT);
  follow(page);
  draw(page);
  return { destroy() { quiet(); page.transport = null; root.replaceChildren(); } };
}

const nnsightNla = (globalThis.nnsightNla = { ...globalThis.nnsightNla, mount });
const held = document.getElementById("readings");
if (held) mount(document.getElementById("page"), JSON.parse(held.textContent), nnsightNla.transport, true);
