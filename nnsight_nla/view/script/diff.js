// ---- differences: the words and the algorithm of difference() in Python ---------------------------------
// (evaluation/difference.py, which uses difflib; tests/browser/test_diff.py compares the two.)

const WORD = /[\p{L}\p{N}_]+(?:['’][\p{L}\p{N}_]+)*|[^\p{L}\p{N}_\s]/gu;
const wordsOf = (text) => [...(text || "").matchAll(WORD)].map((found) => found[0]);

/** Return the longest run that two lists have in common within bounds: [start, start, length]. */
function longest(a, where, [from, to, first, last]) {
  let found = [from, first, 0], lengths = new Map();
  for (let i = from; i < to; i += 1) {
    const next = new Map();
    for (const j of where.get(a[i]) || []) {
      if (j < first) continue;
      if (j >= last) break;
      const length = (lengths.get(j - 1) || 0) + 1;
      next.set(j, length);
      if (length > found[2]) found = [i - length + 1, j - length + 1, length];
    }
    lengths = next;
  }
  return found;
}

/** Return the runs that two lists have in common, in order, each as [start, start, length]. */
function matches(a, b) {
  const where = new Map(), found = [], open = [[0, a.length, 0, b.length]];
  b.forEach((word, j) => { if (where.has(word)) where.get(word).push(j); else where.set(word, [j]); });
  while (open.length) {
    const bounds = open.pop(), [i, j, length] = longest(a, where, bounds);
    if (!length) continue;
    found.push([i, j, length]);
    open.push([bounds[0], i, bounds[2], j], [i + length, bounds[1], j + length, bounds[3]]);
  }
  return found.sort((one, other) => one[0] - other[0] || one[1] - other[1]);
}

/** Return `text` as [piece, whether its words are missing from the other text] pairs. */
function pieces(text, other, side) {
  const own = [...text.matchAll(WORD)], words = own.map((found) => found[0]), others = wordsOf(other);
  if (words.length * others.length > 1e6) return [[text, false]];
  const kept = new Set(), found = side === 0 ? matches(words, others) : matches(others, words);
  for (const match of found) for (let k = 0; k < match[2]; k += 1) kept.add(match[side] + k);
  const made = [];
  let at = 0, k = 0;
  while (k < own.length) {
    if (kept.has(k)) { k += 1; continue; }
    const start = own[k].index;
    while (k + 1 < own.length && !kept.has(k + 1)) k += 1;
    const end = own[k].index + own[k][0].length;
    if (start > at) made.push([text.slice(at, start), false]);
    made.push([text.slice(start, end), true]);
    at = end;
    k += 1;
  }
  if (at < text.length) made.push([text.slice(at), false]);
  return made;
}

/** Return how much two explanations differ, 0 to 1, from the words that they share in any order. */
function change(a, b) {
  if (a.x === b.x) return 0;
  const left = new Map(), one = wordsOf(a.x), other = wordsOf(b.x);
  for (const word of one) left.set(word, (left.get(word) || 0) + 1);
  let shared = 0;
  for (const word of other) {
    const have = left.get(word) || 0;
    if (have) { shared += 1; left.set(word, have - 1); }
  }
  return Math.max(0.08, 1 - (2 * shared) / Math.max(1, one.length + other.length));
}

/** Return which tokens of two texts are opposite each other, as pairs of indices. */
function aligned(one, other) {
  if (one.length === other.length) return one.map((_, i) => [i, i]);
  const found = [];
  let a = 0, b = 0;
  for (const [i, j, length] of [...matches(one, other), [one.length, other.length, 0]]) {
    if (i - a === j - b) for (let k = 0; k < i - a; k += 1) found.push([a + k, b + k]);
    for (let k = 0; k < length; k += 1) found.push([i + k, j + k]);
    [a, b] = [i + length, j + length];
  }
  return found;
}
