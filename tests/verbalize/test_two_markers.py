"""A verbalizer with a marker for each end of a difference, compared with a plain forward hook."""

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from nnsight_nla import (
    NLA,
    Checkpoint,
    CheckpointError,
    Explanation,
    InjectionError,
    Sampling,
    bulk,
    experiments,
    tiny,
)
from nnsight_nla.checkpoint.checkpoint import parse_sidecar
from nnsight_nla.evaluation.evaluate import evaluate
from nnsight_nla.remote.wire import RemoteNLA
from nnsight_nla.training.reinforcement import RLSettings
from nnsight_nla.training.reinforcement.pair import open_pair
from tests.helpers.plain_oracle import first_logits

SHORT = Sampling(max_new_tokens=8)
TEMPLATE = (
    "From <concept>{injection_char}</concept> to <concept>{injection_char}</concept>.\n\n"
    "Please provide an explanation."
)


def described() -> Checkpoint:
    return replace(Checkpoint.load(tiny.paths()["av"]), template=TEMPLATE, vectors=2)


@pytest.fixture(scope="module")
def both() -> NLA:
    paths = tiny.paths()
    return NLA(paths["av"], ar=paths["ar"], checkpoint=described(), dtype=torch.float32)


@pytest.fixture(scope="module")
def plain() -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny.paths()["av"], dtype=torch.float32).eval()


def by_hand(nla: NLA, plain: Any, vectors: torch.Tensor) -> str:
    """The greedy reply, with each vector added at its own marker by a hook of the test."""
    said: list[int] = []
    ids, sites = list(nla.prompt.ids), list(nla.prompt.sites)
    while len(said) < SHORT.max_new_tokens:
        said.append(int(first_logits(plain, [*ids, *said], sites, vectors).argmax()))
    tokenizer: Any = nla.av.tokenizer
    return tokenizer.decode(said, skip_special_tokens=True)


@pytest.mark.parametrize("engine", ["fast", "generate"])
def test_each_marker_gets_its_own_vector(both, plain, residuals, engine):
    both._verbalizer.engine = engine
    pairs = torch.stack([residuals[:2], residuals[-2:]], dim=-2)
    thought = both.explain(pairs, sampling=SHORT)
    assert (thought.shape, tuple(thought.vectors.shape)) == ((2,), (2, 2, 128))
    expected = [by_hand(both, plain, each) for each in pairs]
    assert thought.raw == expected
    # The order matters: the logits of the first token differ.
    ends = [
        first_logits(plain, list(both.prompt.ids), list(both.prompt.sites), each)
        for each in (pairs[0], pairs[0].flip(0))
    ]
    assert (ends[0] - ends[1]).abs().max() > 0.1
    torch.testing.assert_close(thought.vectors, pairs)
    assert torch.tensor(thought.receipt.injection_cosine).min() > 0.999
    assert thought.questions is None
    assert "question" not in thought.to_pandas()


def test_it_works_in_a_trace_and_on_a_host(both, model):
    with model.trace("People in Paris speak"):
        output = both.layer(model).output
        inside = both.explain(output[0, -2:], sampling=SHORT)
    assert inside.shape == ()
    stub = RemoteNLA(both.uid, 3, 128, (3,), vectors=2)
    with model.trace("People in Paris speak"):
        sent = stub.explain(stub.layer(model).output[0, -2:])
    assert (sent.shape, tuple(sent.vectors.shape)) == ((), (2, 128))
    capture = both.capture(sent.capture.vectors, **sent.capture.options)
    torch.testing.assert_close(capture.vectors[0], inside.vectors)


def test_there_is_no_reconstruction_of_two_vectors(both, residuals):
    thought = both.explain(residuals[:2], sampling=SHORT)
    assert thought.trust is None
    assert not both.has_reconstructor
    with pytest.raises(CheckpointError, match="gives one vector for a text, and this verbalizer"):
        both.score(thought)
    assert isinstance(both.explain_nothing().text, str)


def test_a_file_has_both_vectors(both, residuals, tmp_path):
    pairs = torch.stack([residuals[:2], residuals[-2:]], dim=-2)
    thought = both.explain(pairs, sampling=SHORT)
    thought.to_parquet(tmp_path / "two.parquet")
    back = Explanation.from_parquet(tmp_path / "two.parquet")
    assert (back.shape, back.text, back.raw) == (thought.shape, thought.text, thought.raw)
    assert torch.equal(back.vectors, pairs)
    assert back.questions is None
    assert back.to_pandas().equals(thought.to_pandas())


def test_what_is_not_two_vectors_is_refused(both, residuals):
    for wrong in (residuals[0], residuals[:3], residuals[:3, None]):
        with pytest.raises(InjectionError, match=r"reads 2 vectors, one at each marker: expected"):
            both.explain(wrong)
    with pytest.raises(CheckpointError, match=r"vectors is 3, but the template has .* 2 times"):
        replace(described(), vectors=3)
    with pytest.raises(CheckpointError, match="vectors is 0, expected a number of vectors from 1"):
        replace(described(), vectors=0)


def test_what_explains_one_vector_at_a_time_is_refused(both, model, residuals, tmp_path):
    """Two rows are as many as one explanation takes, so each of these would read them as one."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "People in Paris speak"}\n', "utf-8")
    other = shutil.ignore_patterns("nla_calibration.json")  # Of another sidecar.
    folder = shutil.copytree(tiny.paths()["av"], tmp_path / "av", ignore=other)
    (folder / "nla_meta.yaml").write_text(yaml.safe_dump(described().to_sidecar("av")), "utf-8")
    calls = {
        "read": lambda: both.read(model, "The cow", positions=[0, 1]),
        "controls": lambda: both.controls(2),
        "explain_difference": lambda: both.explain_difference(residuals[0], residuals[1]),
        "doctor": lambda: both.doctor(model),
        "patch": lambda: experiments.patch(
            model, both, "The cow", "The sun", metric=torch.sum, layers=[1], positions=-1
        ),
        "run on the texts of": lambda: bulk.run(both, source, tmp_path / "out.parquet"),
        "hook": lambda: both.hook(model),
        "evaluate": lambda: evaluate(both, residuals[:2], ["a", "b"]),
        "rl": lambda: open_pair(folder, tiny.paths()["ar"], RLSettings(steps=1, warmup=0)),
    }
    for what, call in calls.items():
        with pytest.raises(CheckpointError, match=f"^{what}.*: it explains one vector at a time"):
            call()
    with pytest.raises(CheckpointError, match="gives one vector for a text"):
        both.label(residuals[:2])


def test_the_sidecar_says_it():
    tree = described().to_sidecar("av")
    assert tree["tokens"]["injection_vectors"] == 2
    assert parse_sidecar(tree, "s").vectors == 2
    assert "injection_vectors" not in replace(described(), vectors=None).to_sidecar("av")["tokens"]
