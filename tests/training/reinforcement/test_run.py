"""Train the tiny pair for a few steps: what is written, resumed, kept, watched and stopped."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from nnsight_nla import NLA, Sampling, tiny
from nnsight_nla.training import (
    Files,
    Lora,
    Reward,
    RLWatching,
    Settings,
    TrainingError,
    save_reconstructor,
    save_verbalizer,
    train_reconstructor,
    train_verbalizer,
)
from nnsight_nla.training.published import Published
from tests.helpers.processes import run_together, start
from tests.training.reinforcement.conftest import AR, AV, HELD_OUT, WATCHING


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    return {
        f"{each.relative_to(folder)}/{name}": t
        for each in files
        for name, t in load_file(each).items()
    }


def same(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def without_times(log):
    times = ("seconds", "rollout_share", "rollout_tokens")
    return [{k: v for k, v in line.items() if k not in times} for line in log]


@pytest.fixture(scope="module")
def both(trained, tmp_path_factory):
    """A finished training of both models."""
    return trained(tmp_path_factory.mktemp("both") / "rl")


def test_what_is_trained_loads_and_both_have_moved(both):
    assert sorted(each.name for each in both.folder.iterdir()) == ["ar", "av", "log.json"]
    assert not both.folder.with_name("rl.training").exists()
    for mine, first in ((both.av, AV), (both.ar, AR)):
        now, before = weights(mine), weights(first)
        assert set(now) == set(before)
        moved = {name for name in now if not torch.equal(now[name], before[name])}
        assert len(moved) > len(now) / 2
        assert all(value.dtype == before[name].dtype for name, value in now.items())
    nla = NLA(both.av, ar=both.ar, dtype=torch.float32)
    vectors = torch.randn(2, 128)
    told = nla.explain(vectors, sampling=Sampling(max_new_tokens=48))
    assert nla.score(told, vectors, failures="zero").fve is not None
    meta = yaml.safe_load((both.av / "nla_meta.yaml").read_text("utf-8"))
    assert meta["stage"] == "av_rl"
    first, *earlier = meta["trained_on"]
    assert first["stage"] == "reinforcement learning"
    assert first["steps"] == 4
    assert earlier == yaml.safe_load((AV / "nla_meta.yaml").read_text("utf-8"))["trained_on"]


def test_the_log_has_the_figures_of_every_step_and_those_on_held_out_rows(both):
    assert [line["step"] for line in both.log] == [0, 1, 2, 3, 4]
    for line in both.log[1:]:
        assert {
            "reward", "extraction", "length", "kl", "entropy", "distinct", "cut", "gradient",
            "ar_loss", "rollout_share", "rollout_tokens",
        } <= set(line)  # fmt: skip
        assert 0 < line["rollout_share"] < 1
    assert both.log[1]["kl"] == pytest.approx(0, abs=1e-6)
    assert both.log[4]["kl"] > 1e-5
    held = [line for line in both.log if "eval_fve" in line]
    assert [line["step"] for line in held] == [0, 2, 4]
    for line in held:
        assert {
            "eval_extraction", "eval_length", "eval_fve", "eval_fve_trained",
            "eval_grounded_source", "eval_grounded_position", "eval_grounded_mentions_so_far",
            "eval_grounded_subject", "eval_grounded_next",
        } <= set(line)  # fmt: skip
    # The reconstructor of the start judges in one, the trained one in the other.
    assert held[0]["eval_fve"] == held[0]["eval_fve_trained"]
    assert held[-1]["eval_fve"] != held[-1]["eval_fve_trained"]
    assert json.loads((both.folder / "log.json").read_text("utf-8")) == both.log


def test_the_held_out_figures_are_those_of_the_product(both, rows):
    source = Published(rows, part="held out", held_out=HELD_OUT, limit=6)
    vectors = torch.cat(list(source.vectors(128)))
    for ar, name in ((AR, "eval_fve"), (both.ar, "eval_fve_trained")):
        nla = NLA(both.av, ar=ar, dtype=torch.float32)
        told = nla.explain(vectors, sampling=Sampling(max_new_tokens=48))
        found = nla.score(told, vectors, failures="zero").mean["fve"]
        # It was measured before the weights were rounded to float16.
        assert found == pytest.approx(both.log[-1][name], abs=5e-3)


def test_the_card_says_what_it_is(both):
    card = (both.av / "README.md").read_text("utf-8")
    rows = yaml.safe_load((both.av / "nla_meta.yaml").read_text("utf-8"))["trained_on"][0]["rows"]
    assert f"- reinforcement learning: {rows} rows of `rows.parquet`" in card
    assert "25% of the documents held out, 4 steps" in card
    assert "fve_trained: " in card
    assert "after 4 steps" in card


def test_the_same_call_returns_what_there_is(both, trained):
    lines = []
    again = trained(both.folder, report=lines.append)
    assert again.log == both.log
    assert again.checkpoint.layer == both.checkpoint.layer
    assert not any("step" in line for line in lines)
    with pytest.raises(TrainingError, match=r"rl exists\. Choose another out=, or remove it"):
        trained(both.folder, kl=0.5)


SCRIPT = """
import sys
from pathlib import Path
from nnsight_nla.training import rl
from tests.training.reinforcement.conftest import AR, AV, HELD_OUT, SETTINGS, WATCHING
rl(AV, Path(sys.argv[1]), ar=AR, out=Path(sys.argv[2]), settings=SETTINGS, watching=WATCHING,
   held_out=HELD_OUT)
"""


def test_a_training_that_was_killed_goes_on_to_the_same_weights(both, trained, rows, tmp_path):
    out = tmp_path / "rl"
    work = out.with_name("rl.training")
    with start(SCRIPT, rows, out) as process:
        deadline = time.monotonic() + 240
        while not (work / "checkpoint-2").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    # What a kill in the middle of writing a checkpoint leaves.
    (work / ".checkpoint-4.0123456789ab.part").mkdir()
    lines = []
    found = trained(out, report=lines.append)
    assert any(line.startswith("resuming: 2 steps are done, of 4") for line in lines)
    assert not any(line.startswith("step 1 ") for line in lines)
    assert without_times(found.log) == without_times(both.log)
    assert same(out, both.folder)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["rl"]


def test_more_steps_continue_and_fewer_end_early(trained, tmp_path):
    keeping = replace(WATCHING, keep=True)
    first = trained(tmp_path / "rl", steps=2, watching=keeping)
    more = trained(tmp_path / "rl", steps=4, watching=keeping)
    assert [line["step"] for line in more.log] == [0, 1, 2, 3, 4]
    assert without_times(more.log[:3]) == without_times(first.log)
    fewer = trained(tmp_path / "rl", steps=2, watching=keeping)
    assert [line["step"] for line in fewer.log] == [0, 1, 2]
    assert Files(tmp_path / "rl.training", 1).last().name == "checkpoint-4"
    (tmp_path / "rl.training").rename(tmp_path / "new.training")
    with pytest.raises(TrainingError, match=r"holds a training with other options.*now 0\.5"):
        trained(tmp_path / "new", kl=0.5)


def test_a_frozen_reconstructor_stays_and_is_not_written(trained, tmp_path):
    found = trained(tmp_path / "rl", steps=2, reconstructor="freeze")
    assert found.ar is None
    assert sorted(each.name for each in found.folder.iterdir()) == ["av", "log.json"]
    assert "ar_loss" not in found.log[-1]
    assert "eval_fve_trained" not in found.log[-1]


def test_a_frozen_reconstructor_that_moves_stops_the_training(trained, tmp_path, monkeypatch):
    from nnsight_nla.training.reinforcement import loop

    step = loop.Loop._step

    def nudged(self, number):
        if number == 2:
            with torch.no_grad():
                weight = self.pair.ar_weights["model.layers.1.mlp.up_proj.weight"]
                weight[3, 5] += 0.125
        return step(self, number)

    monkeypatch.setattr(loop.Loop, "_step", nudged)
    with pytest.raises(TrainingError) as caught:
        trained(tmp_path / "rl", reconstructor="freeze")
    assert str(caught.value) == (
        "The reconstructor is frozen and has moved by step 4: its weights changed by up to 0.125, "
        "so its rewards cannot be compared with earlier ones. Something else trains it or writes "
        "to its weights. Give the training a reconstructor of its own, or let it train it: "
        "RLSettings(reconstructor='train')."
    )
    assert not (tmp_path / "rl").exists()
    assert Files(tmp_path / "rl.training", 1).last().name == "checkpoint-2"


def test_the_reward_of_a_step_is_learned_from(trained, tmp_path):
    """Twenty steps of a reward that is easily earned: texts about nobody."""
    own = {"none": Reward(lambda texts, _: [float("No subject" in text) for text in texts], 4.0)}
    found = trained(
        tmp_path / "rl", steps=20, prompts=8, av_rate=2e-3, reconstructor="freeze", rewards=own,
        watching=RLWatching(every=20, rows=0),
    )  # fmt: skip
    first, last = found.log[0], found.log[-1]
    assert last["none"] > first["none"] + 0.3
    assert last["reward"] > first["reward"]


def test_a_training_stops_when_told_to(trained, tmp_path):
    lines = []
    watching = replace(WATCHING, stop=("eval_fve<0.1", "kl>1e-5"))
    found = trained(tmp_path / "rl", watching=watching, report=lines.append)
    # The first step is on the policy of the start: its divergence is 0.
    assert found.log[-1]["step"] == 2
    assert found.stopped.startswith("kl is ")
    assert found.stopped.endswith(", above 1e-05")
    assert lines[-1] == f"stopped after step 2: {found.stopped}"
    assert "eval_fve" in found.log[-1]
    meta = yaml.safe_load((found.av / "nla_meta.yaml").read_text("utf-8"))
    assert meta["trained_on"][0]["stopped"] == found.stopped
    assert f"stopped because {found.stopped}" in (found.av / "README.md").read_text("utf-8")
    again = trained(tmp_path / "rl", watching=watching)
    assert again.stopped == found.stopped
    assert again.log == found.log


def test_the_best_step_is_kept(trained, tmp_path):
    """A figure that falls: the first measured step is the best one."""
    seen = iter([0.5, 0.9, 0.2, 0.1])
    judges = {"own": lambda texts, labels, vectors: next(seen)}
    watching = replace(WATCHING, every=1, best="own", judges=judges)
    found = trained(tmp_path / "rl", steps=3, watching=watching)
    kept = [line["step"] for line in found.log if "kept" in line]
    assert kept == [1]
    alone = trained(tmp_path / "alone", steps=1)
    assert same(found.folder, alone.folder)
    assert "step 1 kept, the best by own" in (found.av / "README.md").read_text("utf-8")


def test_tensorboard_has_the_figures(trained, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watching = replace(WATCHING, tensorboard=tmp_path / "events")
    found = trained(tmp_path / "rl", steps=2, watching=watching)
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    names = events.Tags()["scalars"]
    assert {"draws/reward", "draws/kl", "held_out/fve", "held_out/grounded_source"} <= set(names)
    values = [(each.step, each.value) for each in events.Scalars("draws/reward")]
    expected = [(line["step"], line["reward"]) for line in found.log[1:]]
    assert values == [(step, pytest.approx(value)) for step, value in expected]


@pytest.fixture(scope="module")
def adapters(rows, tmp_path_factory):
    """A verbalizer and a reconstructor as adapters of the tiny target, hardly trained."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nnsight_nla import Checkpoint

    folder, target = tmp_path_factory.mktemp("adapters"), tiny.paths()["target"]
    checkpoint = Checkpoint.load(AV)
    settings = Settings(steps=30, batch_size=16, learning_rate=1e-2, warmup=0, lora=Lora(8))
    source = Published(rows)
    for role, train, save in (
        ("av", train_verbalizer, save_verbalizer),
        ("ar", train_reconstructor, save_reconstructor),
    ):
        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(target)
        made = train(model, tokenizer, source, checkpoint, settings)
        save(folder / role, made, tokenizer, checkpoint)
    return folder


def test_adapters_are_continued(adapters, trained, tmp_path):
    av, ar = adapters / "av", adapters / "ar"
    found = trained(tmp_path / "rl", av=av, ar=ar, steps=2)
    for mine, first in ((found.av, av), (found.ar, ar)):
        now, before = weights(mine), weights(first)
        assert set(now) == set(before)
        assert all("lora" in name or "head" in name for name in now)
        assert any(not torch.equal(now[name], before[name]) for name in now)
        ours, theirs = (
            json.loads((each / "adapter_config.json").read_text("utf-8")) for each in (mine, first)
        )
        assert {name for name in ours if ours[name] != theirs.get(name)} <= {"peft_version"}
    # The divergence is from the adapter of the warm start, not from the base.
    assert found.log[1]["kl"] == pytest.approx(0, abs=1e-6)
    nla = NLA(found.av, ar=found.ar, dtype=torch.float32)
    assert nla.reconstruct(["About Paris."]).shape == (1, 128)
    with pytest.raises(TrainingError) as caught:
        trained(tmp_path / "other", av=av, ar=ar, lora=Lora(4))
    assert str(caught.value).startswith(
        f"{av} is an adapter, which reinforcement learning continues, and lora="
    )


def test_a_whole_verbalizer_may_get_a_fresh_adapter(trained, tmp_path):
    found = trained(tmp_path / "rl", steps=1, lora=Lora(4), reconstructor="freeze")
    config = json.loads((found.av / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == str(AV)
    assert config["r"] == 4
    assert NLA(found.av, dtype=torch.float32).explain(torch.randn(128)).raw


def test_recomputed_activations_change_nothing(trained, tmp_path):
    logs = [
        trained(tmp_path / how, steps=1, activations=how, reconstructor="freeze").log[-1]
        for how in ("keep", "recompute")
    ]
    for name in ("reward", "kl", "entropy", "gradient", "eval_fve"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=2e-3, abs=1e-5)


def test_bfloat16_is_autocast(trained, tmp_path):
    found = trained(tmp_path / "rl", steps=1, precision="bfloat16")
    assert found.log[-1]["reward"] > -4
    assert weights(found.av)["model.safetensors/model.embed_tokens.weight"].dtype == torch.float16


SEVERAL = """
import json, sys
from pathlib import Path
from nnsight_nla.training import RLSettings, rl
from tests.training.reinforcement.conftest import AR, AV, HELD_OUT, SETTINGS, WATCHING
settings = RLSettings(**{**vars(SETTINGS), "steps": 2, "reconstructor": "freeze"})
rl(AV, Path(sys.argv[1]), ar=AR, out=Path(sys.argv[2]), settings=settings, watching=WATCHING,
   held_out=HELD_OUT)
"""


def test_two_processes_share_the_vectors(trained, rows, tmp_path):
    """Each draws for half of the vectors; together they make the update that one makes."""
    run_together(SEVERAL, rows, tmp_path / "two")
    one = trained(tmp_path / "one", steps=2, reconstructor="freeze")
    log = json.loads((tmp_path / "two" / "log.json").read_text("utf-8"))
    for name in ("reward", "extraction", "length", "distinct", "gradient"):
        assert log[1][name] == pytest.approx(one.log[1][name], rel=1e-3), name
    assert log[-1]["step"] == 2
    assert NLA(tmp_path / "two" / "av").checkpoint.layer == 3
