"""The draws of a step: tokens per second against ``generate`` with a hook, and their share of it.

``generate`` with a hook is what anyone writes first: the plain model of transformers, a forward
hook that writes the vectors in the prefill, ``do_sample=True``, and the same texts to stop at. Both
draw eight texts for each vector at temperature 1, in turn within one run, in processor time, which
other work on the machine changes less than the clock on the wall. ``python -m
tests.bench.speed_table draws`` makes the site's table.
"""

import statistics
import time
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnsight_nla import NLA, tiny
from nnsight_nla.core.injection import write
from nnsight_nla.tiny.examples import collect
from nnsight_nla.tiny.facts import training_pairs
from nnsight_nla.training import RLSettings
from nnsight_nla.training.published import Published
from nnsight_nla.training.reinforcement.loop import Loop
from nnsight_nla.training.reinforcement.pair import open_pair
from nnsight_nla.training.reinforcement.rollout import roll_out
from nnsight_nla.training.reinforcement.vectors import Vectors
from tests.helpers.tiny_rows import tiny_rows, write_rows

LEAST = 1.5
"""How many times as many tokens per second, at least."""
ROUNDS = 5
SETTINGS = RLSettings(prompts=16, draws=8, max_new_tokens=64, length_margin=16, batch_size=64)


def generated(model, tokenizer, prompt, nla, vectors):
    """The number of tokens that ``generate`` drew, with the vectors written by a plain hook."""
    rows = vectors.repeat_interleave(SETTINGS.draws, 0)
    ids = torch.tensor([prompt.ids]).expand(len(rows), -1)

    def hook(module, arguments, output):
        if output.shape[1] == len(prompt.ids):
            return write(output, rows, prompt.sites, nla.checkpoint.injection)
        return None

    handle = model.model.layers[nla.checkpoint.injection.layer].register_forward_hook(hook)
    try:
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0,
            top_k=0, top_p=1.0, max_new_tokens=SETTINGS.max_new_tokens, tokenizer=tokenizer,
            stop_strings=["</explanation>"], pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
    finally:
        handle.remove()
    return int((made[:, len(prompt.ids) :] != tokenizer.pad_token_id).sum())


def timed(function):
    start = time.process_time()
    tokens = function()
    return tokens / (time.process_time() - start)


def test_draws_against_generate_with_a_hook():
    target, _ = tiny.load()
    vectors = collect(target, training_pairs(), documents=20, seed=1).vectors[: SETTINGS.prompts]
    folder = tiny.paths()["av"]
    nla = NLA(folder, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def theirs(number):
        torch.manual_seed(number)
        return generated(plain, tokenizer, nla.prompt, nla, vectors)

    def ours(number):
        return sum(roll_out(nla, vectors, SETTINGS, number).lengths)

    theirs(0), ours(0)
    pairs = [(timed(lambda n=n: ours(n)), timed(lambda n=n: theirs(n))) for n in range(ROUNDS)]
    mine, other = (statistics.median(each) for each in zip(*pairs, strict=True))
    times = statistics.median(a / b for a, b in pairs)
    print(
        f"\n{SETTINGS.prompts} vectors x {SETTINGS.draws} draws, the tiny pair: "
        f"{mine:,.0f} tokens/s; generate with a hook {other:,.0f} (x{times:.2f}; "
        f"medians of {ROUNDS})"
    )
    assert times >= LEAST


@pytest.mark.parametrize("reconstructor", ["freeze", "train"])
def test_the_share_of_the_draws_in_a_step(reconstructor, tmp_path: Path):
    target, _ = tiny.load()
    file = write_rows(tiny_rows(target, documents=20, per_document=6), tmp_path / "rows.parquet")
    settings = RLSettings(**{**vars(SETTINGS), "reconstructor": reconstructor})
    pair = open_pair(tiny.paths()["av"], tiny.paths()["ar"], settings, dtype="float32")
    vectors = Vectors(Published(file), 128, 0)
    loop = Loop(pair, vectors, settings, {}, PartialState(cpu=True))
    loop.settings = RLSettings(**{**vars(settings), "steps": ROUNDS + 1})
    loop.run(0, lambda step, figures: False)
    found = loop.log[1:]
    share = statistics.median(each["rollout_share"] for each in found)
    seconds = statistics.median(each["seconds"] for each in found)
    print(
        f"\na step takes {seconds:.2f} s, the draws {share:.0%} of it "
        f"(reconstructor: {reconstructor}; medians of {ROUNDS}, on the clock)"
    )
    assert 0.05 < share < 0.75
