"""The step that was best by a figure is kept, through kills, moves, and other numbers of steps."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from nnsight_nla.cli.app import in_flags
from nnsight_nla.training import (
    Files,
    HeldOut,
    Lora,
    Settings,
    TrainingError,
    Watching,
    describe,
    train,
    train_reconstructor,
)
from nnsight_nla.training import run as run_module
from nnsight_nla.training import trainer as trainer_module
from nnsight_nla.training.best import Best, best_of, saved_steps
from tests.helpers.processes import start
from tests.helpers.published import base, publish, records, tokenizer
from tests.training.test_run import same, weights

SETTINGS = Settings(steps=12, batch_size=9, learning_rate=1e-3, warmup=2, lora=Lora(rank=2))
# The figure of each measured step; the last one is no number.
PEAK = {2: 0.1, 4: 0.3, 6: 0.9, 8: 0.2, 10: 0.9, 12: math.nan}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    base(folder / "base")
    publish(folder / "rows.parquet", records())
    return folder


def of_the_step(out: Path, values):
    """A metric that depends on the step alone: two after the newest state in the work folder."""
    work = out.with_name(f"{out.name}.training")
    return lambda *_: values[Files(work, 2).steps() + 2]


def trained(folder, out, values=None, settings=SETTINGS, role="av", **options):
    watching = {"every": 2, "rows": 2, "max_new_tokens": 2, "best": "own"}
    watching["judges"] = {"own": of_the_step(out, values or PEAK)}
    watching |= options.pop("watching", {})
    return train(
        role, folder / "rows.parquet", base=folder / "base", out=out, settings=settings,
        held_out=0.25, watching=Watching(**watching), **options,
    )  # fmt: skip


@pytest.fixture
def seen(monkeypatch):
    """The trained weights at each measurement, by step."""
    found, real = {}, trainer_module._Trainer.evaluate

    def evaluate(self, *given, **options):
        parameters = self.model.named_parameters()
        found[self.state.global_step] = {
            name.replace(".default.", "."): each.detach().clone()
            for name, each in parameters if each.requires_grad
        }  # fmt: skip
        return real(self, *given, **options)

    monkeypatch.setattr(trainer_module._Trainer, "evaluate", evaluate)
    return found


def entry(out):
    return yaml.safe_load((out / "nla_meta.yaml").read_text("utf-8"))["trained_on"][0]


def is_of(out, expected):
    """Whether what was trained is saved as it was at a measurement."""
    known = {**{name.removeprefix("model."): w for name, w in expected.items()}, **expected}
    known["weight"] = expected.get("head.weight")  # In a file of its own.
    saved = {name.partition("/")[2]: each for name, each in weights(out).items()}
    names = [name for name in saved if name in known]
    # The final norm and the head of a whole reconstructor's base are not trained.
    assert len(names) >= len(saved) - 2
    return all(torch.equal(saved[name], known[name]) for name in names)


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
def test_a_verbalizer_keeps_the_step_in_the_middle(folder, tmp_path, seen, lora):
    out, lines = tmp_path / "av", []
    found = trained(folder, out, settings=replace(SETTINGS, lora=lora), report=lines.append)
    assert sorted(seen) == [2, 4, 6, 8, 10, 12]
    saved = load_file(out / f"{'model' if lora is None else 'adapter_model'}.safetensors")
    assert saved
    for name, each in saved.items():
        assert torch.equal(each, seen[6][name])
    assert any(not torch.equal(each, seen[12][name]) for name, each in saved.items())
    assert (entry(out)["steps"], entry(out)["kept_step"], entry(out)["kept_by"]) == (12, 6, "own")
    assert lines[-1] == "kept step 6 of 12, the best by own: 0.9000"
    (kept,) = [line for line in found.log if "kept" in line]
    assert (kept["step"], kept["eval_own"], kept["kept"]) == (6, 0.9, 1.0)
    assert found.log[-1]["step"] == 12
    card = (out / "README.md").read_text("utf-8")
    assert ", 12 steps, step 6 kept, the best by own" in card
    assert "- own: 0.9 after 6 steps" in card
    # The same command again returns it.
    again = trained(folder, out, settings=replace(SETTINGS, lora=lora))
    assert str(again.log) == str(found.log)  # One figure is NaN.


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
def test_a_reconstructor_keeps_the_smallest_loss(folder, tmp_path, seen, monkeypatch, lora):
    from nnsight_nla.training import reconstructor

    out = tmp_path / "ar"
    loss = of_the_step(out, {step: -value for step, value in PEAK.items()})
    figures = lambda *_: lambda model: {"loss": loss()}  # noqa: E731
    monkeypatch.setattr(reconstructor, "reconstructor_figures", figures)
    trained(
        folder, out, settings=replace(SETTINGS, lora=lora), role="ar", watching={"best": "loss"}
    )
    assert entry(out)["kept_step"] == 6
    head = load_file(out / "value_head.safetensors")["weight"]
    assert torch.equal(head, seen[6]["head.weight"])
    assert not torch.equal(head, seen[12]["head.weight"])
    assert is_of(out, seen[6])
    assert not is_of(out, seen[12])


@pytest.mark.parametrize(("values", "kept"), [
    ({2: 0.9, 4: 0.1, 6: 0.1}, 2),  # The first, which neither of the two newest states is.
    ({2: 0.1, 4: 0.1, 6: 0.9}, 6),  # The last, which is measured and saved too.
    ({2: 0.1, 4: 0.1, 6: 0.1}, 2),  # The earliest of equals.
    ({2: math.nan, 4: math.inf, 6: -3.0}, 6),  # The only number.
])  # fmt: skip
def test_any_step_can_be_the_best(folder, tmp_path, seen, values, kept):
    trained(folder, tmp_path / "av", values, replace(SETTINGS, steps=6))
    assert entry(tmp_path / "av")["kept_step"] == kept
    assert is_of(tmp_path / "av", seen[kept])


def test_the_last_step_is_measured_wherever_it_is(folder, tmp_path, seen):
    out = tmp_path / "av"
    trained(folder, out, {2: 0.1, 4: 0.2, 6: 0.9}, replace(SETTINGS, steps=5))
    assert entry(out)["kept_step"] == 5
    assert is_of(out, seen[5])


def test_without_a_number_the_last_step_is_kept(folder, tmp_path, seen):
    out, lines = tmp_path / "av", []
    values = dict.fromkeys((2, 4, 6), math.nan)
    trained(folder, out, values, replace(SETTINGS, steps=6), report=lines.append)
    assert lines[-1] == "kept step 6, the last: own was a number at no measurement"
    assert "kept_step" not in entry(out)
    assert is_of(out, seen[6])


# Kills, and states that are gone on with.

SCRIPT = """
import sys, time
from pathlib import Path
from tests.training.test_best import PEAK, trained

class Slow(dict):
    def __getitem__(self, step):
        time.sleep(0.3)
        return PEAK[step]

trained(Path(sys.argv[1]), Path(sys.argv[2]), Slow({0: 0}))
"""


@pytest.fixture(scope="module")
def undisturbed(folder):
    return trained(folder, folder / "undisturbed")


@pytest.mark.parametrize("at", [4, 8])
def test_a_training_that_was_killed_keeps_the_same_step(folder, undisturbed, tmp_path, at):
    """Before the best step, or after it."""
    out, work = tmp_path / "first" / "av", tmp_path / "first" / "av.training"
    out.parent.mkdir()
    with start(SCRIPT, folder, out) as process:
        deadline = time.monotonic() + 120
        while Files(work, 2).steps() < at and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    last = Files(work, 2).last()
    state = json.loads((last / "trainer_state.json").read_text("utf-8"))
    assert state["best_global_step"] == (4 if Files(work, 2).steps() == 4 else 6)
    # And its folder is another now.
    (tmp_path / "first").rename(tmp_path / "second")
    out = tmp_path / "second" / "av"
    found = trained(folder, out)
    assert entry(out)["kept_step"] == 6
    logs = ([sorted(line.items()) for line in each.log] for each in (found, undisturbed))
    assert str(next(logs)) == str(next(logs))  # One figure is NaN.
    if torch.get_num_threads() == 1:  # Sums depend on the number of threads.
        assert same(out, undisturbed.folder)
    assert [each.name for each in out.parent.iterdir()] == ["av"]


def test_a_training_that_was_done_but_not_saved_ends_at_the_best_weights(
    folder, undisturbed, tmp_path, monkeypatch
):
    out = tmp_path / "av"
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_verbalizer", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained(folder, out)
    assert saved_steps(tmp_path / "av.training") == {6, 12}
    lines = []
    trained(folder, out, report=lines.append)
    assert not any(line.startswith("step ") for line in lines)
    assert lines[-1] == "kept step 6 of 12, the best by own: 0.9000"
    assert same(out, undisturbed.folder)


@pytest.fixture(scope="module")
def kept(folder):
    """A finished training whose state was kept: of the best step and of the last one."""
    trained(folder, folder / "kept", watching={"keep": True})
    return folder / "kept.training"


@pytest.fixture
def work(kept, tmp_path):
    return Path(shutil.copytree(kept, tmp_path / "av.training"))


@pytest.mark.parametrize(("after", "step"), [(0.5, 6), (1.5, 14)])
def test_more_steps_go_on_from_the_last_state_and_may_be_better(
    folder, work, tmp_path, seen, after, step
):
    out, lines = tmp_path / "av", []
    more = replace(SETTINGS, steps=16)
    trained(folder, out, {14: after, 16: 0.1}, more, report=lines.append)
    assert "resuming: 12 steps are done, of 16 instead of 12" in lines
    assert sorted(seen) == [14, 16]
    assert (entry(out)["steps"], entry(out)["kept_step"]) == (16, step)
    if step == 14:
        assert is_of(out, seen[14])


def test_fewer_steps_end_at_the_best_of_those(folder, work, undisturbed, tmp_path):
    out = tmp_path / "av"
    trained(folder, out, settings=replace(SETTINGS, steps=6))
    assert (entry(out)["steps"], entry(out)["kept_step"]) == (6, 6)
    assert same(out, undisturbed.folder)


def test_fewer_steps_than_any_state_has_end_at_the_best_that_is_there(
    folder, work, undisturbed, tmp_path
):
    out = tmp_path / "av"
    trained(folder, out, settings=replace(SETTINGS, steps=1))
    assert (entry(out)["steps"], entry(out)["kept_step"]) == (12, 6)
    assert same(out, undisturbed.folder)


def test_a_best_state_that_is_gone_is_not_compared_with(folder, work, tmp_path, seen):
    """As when fewer steps go on from a state whose own best was deleted since."""
    shutil.rmtree(work / "checkpoint-6")
    out = tmp_path / "av"
    trained(folder, out, {14: 0.4, 16: 0.1}, replace(SETTINGS, steps=16))
    assert entry(out)["kept_step"] == 14
    assert is_of(out, seen[14])


@pytest.mark.parametrize(("changes", "message"), [
    ({"best": None}, "best='own' (now None), measured_rows=2 (now None), "),
    ({"best": "loss"}, "best='own' (now 'loss')"),
    ({"rows": 4}, "measured_rows=2 (now 4)"),
    ({"max_new_tokens": 3}, "max_new_tokens=2 (now 3)"),
])  # fmt: skip
def test_what_is_compared_stays_the_same(folder, work, tmp_path, changes, message):
    with pytest.raises(TrainingError, match="holds a training with other options") as caught:
        trained(folder, tmp_path / "av", watching=changes)
    assert message in str(caught.value)


def test_a_training_that_kept_the_last_step_does_not_go_on_to_the_best(folder, tmp_path):
    out = tmp_path / "av"
    trained(folder, out, watching={"best": None, "keep": True})
    with pytest.raises(TrainingError, match=rf"^{out} exists"):
        trained(folder, out)
    shutil.rmtree(out)
    with pytest.raises(TrainingError, match=r"best=None \(now 'own'\)"):
        trained(folder, out)


# Several processes.

SEVERAL = """
import os, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from nnsight_nla.training import Files, Settings, Watching, run, train

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
out = folder / "several"
values = iter([0.1, 0.9, 0.2] if rank == 0 else [0.9, 0.1, 0.2])  # They do not agree.
real = run.train_verbalizer

def look(*given, **options):
    model = real(*given, **options)
    save_file({n: p.detach().clone() for n, p in model.named_parameters()}, folder / f"rank{rank}")
    return model

run.train_verbalizer = look
done = train(
    "av", folder / "rows.parquet", base=folder / "base", out=out,
    settings=Settings(steps=3, batch_size=4, learning_rate=1e-3, warmup=0), held_out=0.25,
    watching=Watching(1, 2, None, 2, judges={"own": lambda *_: next(values)}, best="own"),
)
assert [line["step"] for line in done.log if "kept" in line] == [2], done.log
"""


def test_all_processes_end_at_the_same_weights(folder):
    script = folder / "several.py"
    script.write_text(SEVERAL)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (load_file(folder / f"rank{rank}") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert entry(folder / "several")["kept_step"] == 2


# Errors.


@pytest.mark.parametrize(("role", "watching", "message"), [
    ("av", {"best": "fvee"},
     "best='fvee' is not measured in this training. Expected one of loss, extraction, own."),
    ("av", {"best": "fve"},
     "best='fve' is not measured in this training. Expected one of loss, extraction, own. A "
     "reconstructor measures it: pass ar=."),
    ("ar", {"best": "extraction"},
     "best='extraction' is not measured in this training. Expected one of loss, cosine, fve."),
    ("av", {"rows": 0},
     "best='own' needs figures of held-out rows, and Watching(rows=0) measures none. Measure "
     "some, as in Watching(rows=64), or leave best out."),
])  # fmt: skip
def test_a_figure_that_is_not_measured_is_refused_before_anything_is_loaded(
    folder, tmp_path, monkeypatch, role, watching, message
):
    monkeypatch.setattr(run_module, "_load", lambda *_: pytest.fail("was loaded"))
    monkeypatch.setattr(run_module, "_baseline", lambda *_: pytest.fail("were read"))
    with pytest.raises(TrainingError) as caught:
        trained(folder, tmp_path / "out", role=role, watching=watching)
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


def test_without_held_out_documents_there_is_no_best(folder, tmp_path):
    with pytest.raises(TrainingError) as caught:
        train(
            "av", folder / "rows.parquet", base=folder / "base", out=tmp_path / "av", held_out=0,
            watching=Watching(best="loss"),
        )  # fmt: skip
    assert str(caught.value) == (
        "best='loss' needs figures of held-out rows, and held_out=0 measures none. Measure some, "
        "as in held_out=0.05, or leave best out."
    )


def test_rows_of_one_direction_have_no_fve(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "_load", lambda *_: pytest.fail("was loaded"))
    monkeypatch.setattr(run_module, "_baseline", lambda *_: None)
    with pytest.raises(TrainingError, match=r"best='fve' is not .* one of loss, cosine\.$"):
        trained(folder, tmp_path / "ar", role="ar", watching={"best": "fve"})


def test_the_functions_below_refuse_it_too(tmp_path):
    from tests.training.test_training import random_model

    live = tokenizer()
    checkpoint = describe(live, layer=1, d_model=32)

    def started(held_out, files=None):
        model = random_model("Qwen3", live, num_hidden_layers=3, hidden_size=32)
        settings = Settings(steps=2, batch_size=4, warmup=0)
        train_reconstructor(
            model, live, records(8), checkpoint, settings, held_out=held_out, files=files
        )

    rows = HeldOut(records(4), 2, best="fve")
    for files, found in ((None, "no files"), (Files(tmp_path, 3), "files that are saved every 3")):
        with pytest.raises(TrainingError, match=rf"^best='fve' keeps .*got {found}.*every=2"):
            started(rows, files)
    with pytest.raises(TrainingError) as caught:
        started(rows, Files(tmp_path, 2))
    assert str(caught.value) == (
        "best='fve' is not measured in this training. Expected one of loss, cosine."
    )


def test_the_command_line_names_flags(folder, tmp_path):
    from typer.testing import CliRunner

    from nnsight_nla.cli import app

    def error(*more, role="av"):
        command = ["train", role, folder / "rows.parquet", "--base", folder / "base"]
        command += ["--out", tmp_path / "av", "--held-out", "0.25", *more]
        found = CliRunner().invoke(app, [str(each) for each in command])
        return in_flags(str(found.exception), "train")

    assert error("--best", "fve") == (
        "--best 'fve' is not measured in this training. Expected one of loss, extraction. A "
        "reconstructor measures it: pass --ar."
    )
    assert error("--best", "fve", "--measured", "0") == (
        "--best fve needs figures of held-out rows, and --measured 0 measures none. Measure some, "
        "as in --measured 64, or remove --best."
    )
    assert error("--grounded", "--held-out", "0") == (
        "--grounded needs figures of held-out rows, and --held-out 0 measures none. Measure some, "
        "as in --held-out 0.05, or remove --grounded."
    )
    assert error("--grounded", role="ar") == (
        "--grounded compares a verbalizer's texts with the rows' own, and this trains a "
        "reconstructor, which writes none. Leave grounded out."
    )
    assert error("--grounded") == (
        f"{folder / 'rows.parquet'} does not have the texts that its vectors were read in, which "
        "--grounded compares explanations with. `nnsight-nla extract` writes them. Read the "
        "vectors again, or leave grounded out."
    )


def test_the_best_by_hand():
    log = [{"step": 2, "eval_a": 1.0}, {"step": 4, "eval_a": math.nan}, {"step": 6, "loss": 0.1}]
    log += [{"step": 8, "eval_a": 3.0}, {"step": 10, "eval_a": 3.0}, {"step": 12, "eval_a": 9.0}]
    assert best_of(log, "a", {2, 4, 6, 8, 10}) == Best(8, 3.0)
    assert best_of(log, "a", {4, 6}) is None
    losses = [{"step": step, "eval_a_loss": value} for step, value in ((2, 1.0), (8, 0.5))]
    assert best_of(losses, "a_loss", {2, 8}) == Best(8, 0.5)
