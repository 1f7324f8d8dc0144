"""Explanations a second of hybrid models: the fast engine against a hook and ``generate``.

    pytest tests/bench/test_hybrids.py -s            # 3 minutes on one thread
    python -m tests.bench.speed_table hybrids        # the site's table

Random weights; replies of 40 to 150 tokens, as in test_speed.py, evenly spaced: so few random
lengths would be another distribution for each family. Both engines have the same 32 rows in each
round, one after the other, and the best round of each counts. The time is the processor's,
of one thread: on a machine that does nothing else it is the time that passes.
"""

import copy
import time

import pytest
import torch
from nnsight import TransformersModel

from nnsight_nla import NLA, Checkpoint, Injection, Sampling, tiny
from nnsight_nla.checkpoint.checkpoint import AV_TEMPLATE
from tests.bench.test_speed import LONGEST, SHORTEST, Countdown, peer
from tests.helpers.hybrids import HYBRIDS, configured
from tutorials.reference.families import quiet

ROWS, ROUNDS, AIM = 32, 3, 1.5
SHAPE = {"width": 384, "depth": 4, "head": 64, "max_position_embeddings": 1024}
FAST, GENERATE = "fast", "generate"


def opened(family):
    """The NLA of a random hybrid, and a copy of the model for the other engine."""
    _, pair = tiny.load()
    tokenizer = pair.av.tokenizer
    ends = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    module = configured(family, **SHAPE, **ends, pad_token_id=0).eval()
    bare = copy.deepcopy(module)
    checkpoint = Checkpoint(
        layer=3, d_model=SHAPE["width"], template=AV_TEMPLATE, marker="㈎",
        marker_id=pair.checkpoint.marker_id, injection=Injection("add", "block", 1),
    )  # fmt: skip
    av = TransformersModel(module, tokenizer=tokenizer, task="text-generation")
    sampling = Sampling(max_new_tokens=LONGEST + 10)
    nla = NLA(av, checkpoint=checkpoint, sampling=sampling, batch_size=ROWS)
    assert nla.info()["engine"]["name"] == FAST
    # Before the countdown: whether the prompt can be shared is tried by comparing logits.
    NLA(av, checkpoint=checkpoint, sampling=Sampling(max_new_tokens=1)).explain_nothing().text  # noqa: B018
    marker = nla.prompt.marker_position - len(nla.prompt.ids)
    for each in (module, bare):
        Countdown(each, tokenizer.eos_token_id, marker)
    return nla, bare


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("family", HYBRIDS)
def test_explanations_a_second(family, capsys):
    with quiet():
        nla, bare = opened(family)
        lengths = torch.linspace(SHORTEST, LONGEST, ROWS).round().long()
        lengths = lengths[torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))]
        # The countdown begins at the largest entry.
        vectors = torch.eye(SHAPE["width"])[lengths - SHORTEST]
        seconds = {FAST: [], GENERATE: []}
        for _ in range(ROUNDS):
            thought = nla.explain(vectors)
            start = time.process_time()
            nla.resolve(thought)
            middle = time.process_time()
            texts = peer(nla, bare, vectors, ROWS)
            seconds[FAST].append(middle - start)
            seconds[GENERATE].append(time.process_time() - middle)
            assert texts == thought.raw
    found = [thought._capture.replies[row, 0].new_tokens for row in range(ROWS)]
    assert found == lengths.tolist()
    best = {name: min(each) for name, each in seconds.items()}
    gained = best[GENERATE] / best[FAST]
    with capsys.disabled():
        print(
            f"\nexplanations a second of one thread, {ROWS} rows, {SHAPE['depth']} layers of "
            f"{SHAPE['width']}, best of {ROUNDS}\n"
            "family           fast  generate            new tokens\n"
            f"{family:12s} {ROWS / best[FAST]:8.2f} {ROWS / best[GENERATE]:9.2f}   x{gained:5.2f}"
            f"   {min(found)} to {max(found)}"
        )
    assert gained >= AIM
