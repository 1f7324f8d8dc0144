"""What it costs to know how far to trust a text: the label beside the text itself."""

import time

import torch

from nnsight_nla import Baseline, tiny


def test_a_label_costs_less_than_the_text_it_is_about(capsys):
    model, nla = tiny.load()
    with model.trace("What a lovely day! People in Paris speak"):
        vectors = nla.layer(model).output[0, 1:].save()
    rows = vectors.repeat(8, 1) + 0.1 * torch.randn(8 * len(vectors), 128)
    warm = nla.explain(rows[:2])
    _ = warm.text, warm.trust
    thought = nla.explain(rows)
    seconds = {}
    for name in ("text", "trust", "claims"):
        start = time.perf_counter()
        if name == "claims":
            nla.claims(thought)
        else:
            getattr(thought, name)
        seconds[name] = time.perf_counter() - start
    shares = {name: seconds[name] / seconds["text"] for name in ("trust", "claims")}
    with capsys.disabled():
        print(f"\n{len(rows)} texts {seconds['text']:.2f} s; of that: {shares}")
    assert shares["trust"] < 0.5
    assert shares["claims"] < 1.0


def test_a_baseline_streams(benchmark):
    vectors = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0)) + 0.5
    found = benchmark.pedantic(
        lambda: Baseline.from_vectors(vectors.split(512), name="random"), rounds=3, iterations=1
    )
    assert found.n == 4096
