"""Rollouts by vLLM: they are the policy's own, before the first update and after it."""

import pytest
import torch

from nnsight_nla import NLA, tiny
from nnsight_nla.training import Lora, RLSettings, RLWatching, rl
from nnsight_nla.verbalize.vllm.launch import lora_options
from tests.helpers.tiny_rows import tiny_rows, write_rows
from tests.training.reinforcement.test_policy import largest, ratios, recorded  # noqa: F401

from .conftest import OPTIONS, random_adapter

AV, AR = tiny.paths()["av"], tiny.paths()["ar"]


def test_before_the_first_update_every_importance_ratio_is_one(
    on_vllm,
    vectors,
    recorded,  # noqa: F811
    tmp_path,
):
    """The draws' log-probabilities are read in vLLM's own sampler, which is in this process."""
    nla = on_vllm(peft=str(random_adapter(tmp_path / "av")))
    settings = RLSettings(prompts=3, draws=4, max_new_tokens=64, length_margin=8)
    values, rollout, _ = ratios(nla, vectors[3:6], settings, recorded)
    assert len({len(each) for each in rollout.ids}) > 1
    assert sum(map(len, rollout.ids)) > 250
    assert largest(values) < 1e-3


def test_another_adapter_is_used_from_the_next_text_on(on_vllm, vectors, tmp_path):
    """Also for a vector whose prompt is in the prefix cache."""
    ours = on_vllm(vllm=lora_options(4))
    before = ours.explain(vectors[:16]).raw
    texts = [before]
    for seed in (0, 1):
        folder = random_adapter(tmp_path / f"av{seed}", seed=seed)
        ours.queue.engine.use_adapter(folder)
        texts.append(ours.explain(vectors[:16]).raw)
        assert texts[-1] == NLA(AV, peft=str(folder), dtype="float32").explain(vectors[:16]).raw
    assert len({tuple(each) for each in texts}) == 3


def test_a_training_is_the_same_as_with_our_own_draws(pair, tmp_path):
    rows = write_rows(tiny_rows(pair[0], documents=12, per_document=5), tmp_path / "rows.parquet")

    def train(engine, **options):
        settings = RLSettings(
            steps=3, prompts=4, draws=4, max_new_tokens=48, length_margin=8, av_rate=1e-2,
            batch_size=16, lora=Lora(4), reconstructor="freeze", engine=engine,
        )  # fmt: skip
        return rl(
            AV, rows, ar=AR, out=tmp_path / engine, settings=settings, dtype="float32",
            watching=RLWatching(every=2, rows=6), held_out=0.25, **options,
        )  # fmt: skip

    ours, theirs = train("vllm", vllm=OPTIONS), train("fast")
    names = ("reward", "length", "kl", "entropy", "distinct", "gradient", "eval_cosine")
    for mine, other in zip(ours.log, theirs.log, strict=True):
        assert {n: mine[n] for n in names if n in mine} == pytest.approx(
            {n: other[n] for n in names if n in other}, rel=1e-3, abs=1e-4
        )
    assert theirs.log[-1]["kl"] > 1e-3  # The policy has moved.
    probe = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    assert NLA(ours.av).explain(probe).raw == NLA(theirs.av).explain(probe).raw
