"""What explanations cost a sweep, outside the verbalizer's own time.

The same activation patching, twice in one process: written by hand in nnsight, as sparingly as it
can be (many cells in one batch, no explanations), and by `experiments.patch` with every explanation
read. From the second the time spent generating text is taken away; what is left over is the price
of capturing, comparing and tabulating. Processor time, which other work on the machine changes
less than the clock on the wall. Run with ``pytest tests/bench/test_sweep_overhead.py -s``.
"""

import statistics
import time

import nnsight
import pytest
import torch

from nnsight_nla import tiny
from nnsight_nla.experiments import logit_difference, patch

BUDGET = 0.10
"""The share of the hand-written sweep's time that may be added."""
ROUNDS = 9
BATCH = 64
STORY = "The day is sad. Shops in France take the euro. Cooks in France make crepes. " * 2
CLEAN = f"{STORY}What a lovely day! People in Paris speak"
CORRUPT = f"{STORY}What a lovely day! People in Rome speak"


@pytest.fixture(scope="module")
def loaded():
    return tiny.load()


def by_hand(model, clean, corrupt, french, italian):
    """Batched activation patching in plain nnsight: ``{(layer, position): effect}``."""
    layers = model.model.layers
    with torch.no_grad(), model.trace(clean):
        donors = nnsight.save([layer.output[0].detach() for layer in layers])
        best = model.lm_head.output[0, -1].save()
    with torch.no_grad(), model.trace(corrupt):
        worst = model.lm_head.output[0, -1].save()
    ends = [float(each[french] - each[italian]) for each in (best, worst)]
    ids = torch.tensor(model.tokenizer(corrupt)["input_ids"])
    cells = [(layer, at) for layer in range(len(layers)) for at in range(len(ids))]
    effects = {}
    for start in range(0, len(cells), BATCH):
        batch = cells[start : start + BATCH]
        with (
            torch.no_grad(),
            model.trace(ids.expand(len(batch), -1).contiguous(), logits_to_keep=1),
        ):
            for number in sorted({layer for layer, _ in batch}):
                rows = [row for row, (layer, _) in enumerate(batch) if layer == number]
                at = [batch[row][1] for row in rows]
                patched = layers[number].output.clone()
                patched[rows, at] = donors[number][at]
                layers[number].output = patched
            logits = model.output.logits[:, -1].save()
        found = (logits[:, french] - logits[:, italian] - ends[1]) / (ends[0] - ends[1])
        effects |= dict(zip(batch, found.tolist(), strict=True))
    return effects


def test_a_sweep_with_explanations_costs_what_the_sweep_by_hand_costs(loaded, monkeypatch):
    model, nla = loaded
    metric = logit_difference(" French", " Italian")
    french, italian = (model.tokenizer.encode(each)[0] for each in (" French", " Italian"))
    generating = []
    verbalize = nla._verbalizer.verbalize

    def timed(*args):
        start = time.process_time()
        try:
            return list(verbalize(*args))
        finally:
            generating.append(time.process_time() - start)

    monkeypatch.setattr(nla._verbalizer, "verbalize", timed)

    def ours():
        generating.clear()
        start = time.process_time()
        sweep = patch(
            model, nla, CLEAN, CORRUPT, layers="all", positions="all", metric=metric,
            batch_size=BATCH,
        )  # fmt: skip
        swept = time.process_time() - start
        rows = sweep.rows()
        return rows, swept, time.process_time() - start - sum(generating), sum(generating)

    def hand():
        start = time.process_time()
        return by_hand(model, CLEAN, CORRUPT, french, italian), time.process_time() - start

    rows, *_ = ours()
    effects, _ = hand()
    assert len(effects) == len(rows) > 200
    for row in rows:
        assert row["effect"] == pytest.approx(effects[row["layer"], row["position"]], abs=1e-3)
    rounds = [(*ours()[1:], hand()[1]) for _ in range(ROUNDS)]
    swept, all_of_it, text, alone = (statistics.median(each) for each in zip(*rounds, strict=True))
    added = statistics.median(taken / by - 1 for _, taken, _, by in rounds)
    print(
        f"\n{len(rows)} cells in batches of {BATCH}: by hand {alone * 1e3:.0f} ms; patch() "
        f"{swept * 1e3:.0f} ms; with the table of texts {all_of_it * 1e3:.0f} ms ({added:+.1%}), "
        f"beside {text * 1e3:.0f} ms of generating (medians of {ROUNDS})"
    )
    assert added <= BUDGET
