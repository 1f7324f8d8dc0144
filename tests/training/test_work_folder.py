"""One process and one set of options at a time, known by their contents; nothing is left behind."""

import json
import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from nnsight_nla.checkpoint.checkpoint import Checkpoint
from nnsight_nla.errors import NLAError
from nnsight_nla.storage import atomic
from nnsight_nla.training import Files, Lora, Settings, TrainingError, Watching, train
from nnsight_nla.training.measuring import _held_out_of
from nnsight_nla.training.published import Published
from tests.helpers.processes import run, start
from tests.helpers.published import base, publish, records
from tests.training.test_run import same, state, weights

SETTINGS = Settings(steps=6, batch_size=8, learning_rate=1e-3, warmup=1, lora=Lora(rank=2))
WATCHING = Watching(every=2, rows=0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    base(folder / "base")
    publish(folder / "rows.parquet", records())
    return folder


@pytest.fixture
def folder(source, tmp_path):
    """The base model and the rows, to be changed."""
    return Path(shutil.copytree(source, tmp_path / "data"))


def trained(folder, out, role="av", settings=SETTINGS, watching=WATCHING, **options):
    options = {"base": folder / "base", "held_out": 0, **options}
    return train(
        role, folder / "rows.parquet", out=out, settings=settings, watching=watching, **options
    )


def more(steps, **changes):
    return Settings(**{**vars(SETTINGS), "steps": steps, **changes})


class StoppedError(Exception):
    """What a test interrupts a training with."""


def interrupt(at):
    """A report that ends a training at the first line that begins so."""

    def report(line):
        if line.startswith(at):
            raise StoppedError

    return report


def interrupted(folder, out):
    """Train until the third step is reported; the state of step 2 is there."""
    with pytest.raises(StoppedError):
        trained(folder, out, report=interrupt("step 3 "))
    work = out.with_name(f"{out.name}.training")
    assert Files(work, 1).steps() == 2
    return work


@pytest.fixture(scope="module")
def undisturbed(source):
    return trained(source, source / "undisturbed")


# One at a time.

HOLD = """
import sys
from pathlib import Path
from tests.training.test_work_folder import trained

def report(line):
    if line.startswith("step 1 "):
        print("training", flush=True)
        sys.stdin.read()

trained(Path(sys.argv[1]), Path(sys.argv[2]), report=report)
"""


def test_a_second_process_is_refused_and_the_first_is_not_disturbed(folder, undisturbed, tmp_path):
    out = tmp_path / "av"
    with start(HOLD, folder, out) as first:
        assert first.stdout.readline() == "training\n"
        with pytest.raises(TrainingError) as caught:
            trained(folder, out)
        assert str(caught.value) == (
            f"Another process is training {out}. Wait for it, end it, or choose another out=."
        )
        with pytest.raises(TrainingError, match="Another process is training"):
            trained(folder, out, "ar")  # Whatever its options are.
    assert first.returncode == 0
    if torch.get_num_threads() == 1:  # Sums depend on the number of threads.
        assert same(out, undisturbed.folder)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["av", "data"]


# Contents, not names.


def another_row(folder):
    rows = pq.read_table(folder / "rows.parquet").to_pylist()
    rows[3]["activation_vector"][0] *= -1
    sidecar = folder / "rows.parquet.nla_meta.yaml"
    kept = sidecar.read_bytes()
    size = (folder / "rows.parquet").stat().st_size
    publish(folder / "rows.parquet", rows)
    assert (folder / "rows.parquet").stat().st_size == size
    sidecar.write_bytes(kept)


def another_weight(folder):
    from safetensors.torch import load_file, save_file

    file = folder / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][5, 5] += 1
    save_file(tensors, file, metadata={"format": "pt"})


def another_tokenizer(folder):
    file = folder / "base" / "tokenizer.json"
    file.write_text(file.read_text("utf-8") + " ", "utf-8")


CHANGES = {
    "a row": (another_row, {}, "rows='"),
    "a weight": (another_weight, {}, "base='"),
    "the tokenizer": (another_tokenizer, {}, "base='"),
    "the share": (None, {"held_out": 0.3}, "held_out=0 (now 0.3)"),
    "the dtype": (None, {"dtype": "bfloat16"}, "dtype=None (now 'bfloat16')"),
    "attention": (None, {"attention": "eager"}, "attention=None (now 'eager')"),
    "the rate": (
        None,
        {"settings": more(6, learning_rate=2e-3)},
        "learning_rate=0.001 (now 0.002)",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_training_does_not_go_on_with_something_else(folder, tmp_path, what):
    change, options, message = CHANGES[what]
    work = interrupted(folder, tmp_path / "av")
    if change is not None:
        change(folder)
    with pytest.raises(TrainingError, match="holds a training with other options") as caught:
        trained(folder, tmp_path / "av", **options)
    assert message in str(caught.value)
    assert str(caught.value).count(" (now ") == 1
    assert Files(work, 1).steps() == 2


def test_rows_that_change_while_they_are_read_are_refused(folder, tmp_path):
    """They were hashed and checked, and are read again to be tokenized."""

    def report(line):
        if line.startswith("loading the weights"):
            another_row(folder)

    with pytest.raises(NLAError, match=r"rows\.parquet was changed while it was read"):
        trained(folder, tmp_path / "av", report=report)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["data"]


def test_a_training_goes_on_where_its_files_were_moved(source, undisturbed, tmp_path):
    first = Path(shutil.copytree(source / "base", tmp_path / "first" / "base")).parent
    for file in source.glob("rows.parquet*"):
        shutil.copy(file, first)
    interrupted(first, tmp_path / "av")
    first.rename(tmp_path / "second")
    lines = []
    found = trained(
        tmp_path / "second", tmp_path / "av", base=tmp_path / "second" / "base",
        report=lines.append,
    )  # fmt: skip
    assert "resuming: 2 steps are done, of 6" in lines
    assert same(found.folder, undisturbed.folder)


def test_a_first_try_that_failed_is_no_training_to_go_on_with(folder, undisturbed, tmp_path):
    rows = folder / "rows.parquet"
    good = rows.read_bytes()
    bad = pq.read_table(rows).to_pylist()
    bad[5]["response"] = "no tags"
    publish(rows, bad)
    with pytest.raises(TrainingError, match="row 5"):
        trained(folder, tmp_path / "av")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["data"]
    rows.write_bytes(good)
    assert same(trained(folder, tmp_path / "av").folder, undisturbed.folder)


def test_a_folder_of_the_users_own_is_not_touched(folder, tmp_path):
    work = tmp_path / "av.training"
    work.mkdir()
    (work / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError) as caught:
        trained(folder, tmp_path / "av")
    assert str(caught.value) == (
        f"{work} exists and is not the work folder of a training. Move it, or choose another out=."
    )
    (work / "begun.json").write_text("{}")
    trained(folder, tmp_path / "av")
    assert [each.name for each in work.iterdir()] == ["notes.txt"]


# Other numbers of steps.


def test_more_steps_continue_a_training(folder, tmp_path):
    out = tmp_path / "av"
    interrupted(folder, out)
    lines = []
    found = trained(folder, out, settings=more(8), report=lines.append)
    assert "resuming: 2 steps are done, of 8 instead of 6" in lines
    assert found.log[-1]["step"] == 8
    (entry,) = yaml.safe_load((out / "nla_meta.yaml").read_text("utf-8"))["trained_on"]
    assert entry["steps"] == 8


@pytest.mark.parametrize(("asked", "done"), [(1, 2), (2, 2), (3, 3)])
def test_fewer_steps_end_a_training_with_a_checkpoint(folder, tmp_path, asked, done):
    out = tmp_path / "av"
    interrupted(folder, out)
    found = trained(folder, out, settings=more(asked))
    (entry,) = yaml.safe_load((out / "nla_meta.yaml").read_text("utf-8"))["trained_on"]
    assert entry["steps"] == done
    assert Checkpoint.load(found.folder).layer == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == ["av", "data"]


def test_a_training_ended_early_has_the_weights_of_its_last_state(folder, tmp_path):
    from safetensors.torch import load_file

    out = tmp_path / "av"
    work = interrupted(folder, out)
    stored = load_file(work / "checkpoint-2" / "model.safetensors")
    trained(folder, out, settings=more(2))
    saved = load_file(out / "adapter_model.safetensors")
    assert len(saved) == len(stored)
    for name, weight in saved.items():
        assert torch.equal(stored[name.replace(".weight", ".default.weight")], weight)


def test_a_finished_training_whose_state_was_kept_can_be_continued(folder, tmp_path):
    out, keep = tmp_path / "av", Watching(every=2, rows=0, keep=True)
    trained(folder, out, watching=keep)
    assert Files(tmp_path / "av.training", 1).steps() == 6
    before = weights(out)
    assert trained(folder, out, watching=keep).log[-1]["step"] == 6
    found = trained(folder, out, settings=more(10))
    assert found.log[-1]["step"] == 10
    after = weights(out)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["av", "data"]


# The same command again.


def test_a_finished_training_is_returned_and_another_one_is_refused(folder, tmp_path, monkeypatch):
    from nnsight_nla.training import run

    out = tmp_path / "av"
    first = trained(folder, out)
    monkeypatch.setattr(run, "_load", lambda *_: pytest.fail("was loaded"))
    again = trained(folder, out)
    assert again.folder == first.folder
    assert again.log == first.log
    assert again.checkpoint.baseline == first.checkpoint.baseline
    with pytest.raises(TrainingError) as caught:
        trained(folder, out, settings=more(9))
    assert str(caught.value) == (
        f"{out} is finished, after 6 steps, and its state was removed, so it cannot be continued. "
        "Choose another out=. To continue a finished training later, keep its state: "
        "Watching(keep=True)."
    )
    for options in ({"settings": more(6, seed=1)}, {"role": "ar"}, {"held_out": 0.3}):
        with pytest.raises(TrainingError, match=rf"^{out} exists\. Choose another out="):
            trained(folder, out, **options)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["av", "data"]


# A process for each case is killed in its last save; they are forked from one that has imported.
KILL = """
import os, signal, sys
from pathlib import Path
from nnsight_nla.errors import NLAError
from nnsight_nla.storage import atomic
from nnsight_nla.training import run, saving
from tests.training.test_work_folder import trained

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def dying_at(suffix, real):
    return lambda path, *a, **o: die() if Path(path).suffix == suffix else real(path, *a, **o)

def kill(where, out):
    if where == "writing":
        saving._save_sidecar = die
    elif where == "between the renames":
        Path.rename = dying_at(".part", Path.rename)
    elif where == "before the old one is deleted":
        atomic.shutil.rmtree = dying_at(".old", atomic.shutil.rmtree)
    elif where == "before the work is removed":
        run.remove = die
    trained(Path(sys.argv[1]), Path(out))

for where, out in zip(sys.argv[2::2], sys.argv[3::2]):
    child = os.fork()
    if not child:
        kill(where, out)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
KILLS = {
    "writing": "absent",
    "writing, into an empty folder": "empty",
    "between the renames": "empty",
    "before the new one has its name": "absent",
    "before the old one is deleted": "empty",
    "before the work is removed": "absent",
}
WHERE = {
    "writing, into an empty folder": "writing",
    "before the new one has its name": "between the renames",
}


@pytest.fixture(scope="module")
def killed(source, tmp_path_factory):
    """The folder of each case, as its killed process left it."""
    trained(source, source / "kept", watching=Watching(every=2, rows=0, keep=True))
    folders = {each: tmp_path_factory.mktemp("killed") for each in KILLS}
    arguments = []
    for each, folder in folders.items():
        shutil.copytree(source / "kept.training", folder / "av.training")
        if KILLS[each] == "empty":
            (folder / "av").mkdir()
        arguments += [WHERE.get(each, each), folder / "av"]
    said = run(KILL, source, *arguments).stdout
    assert [int(line) for line in said.split()] == [-signal.SIGKILL] * len(KILLS)
    return folders


@pytest.mark.parametrize("case", KILLS)
def test_the_same_command_ends_what_a_kill_in_the_last_save_left(source, undisturbed, killed, case):
    folder = killed[case]
    left = sorted(each.name for each in folder.iterdir())
    assert "av.training" in left
    lines = []
    found = trained(source, folder / "av", report=lines.append)
    assert not any(line.startswith("step ") for line in lines)
    assert found.log == undisturbed.log
    if torch.get_num_threads() == 1:  # Sums depend on the number of threads.
        assert same(folder / "av", undisturbed.folder)
    assert [each.name for each in folder.iterdir()] == ["av"]


def test_what_appeared_in_the_meantime_is_not_replaced(folder, tmp_path):
    out = tmp_path / "av"

    def report(line):
        if line.startswith("step 6 ") and not out.exists():
            shutil.copytree(folder / "base", out)
            (out / "nla_meta.yaml").write_text("layer: 1\n")  # As a checkpoint has it.

    with pytest.raises(TrainingError) as caught:
        trained(folder, out, report=report)
    work = tmp_path / "av.training"
    assert str(caught.value) == (
        f"{out} appeared while this training ran. Move it. The training is in {work}: rerun with "
        "the original options to save it."
    )
    assert (out / "nla_meta.yaml").read_text() == "layer: 1\n"
    out.rename(tmp_path / "theirs")
    assert trained(folder, out).log[-1]["step"] == 6


def test_a_link_leads_to_its_target(folder, tmp_path):
    (tmp_path / "av").symlink_to(tmp_path / "disk" / "av")
    (tmp_path / "disk").mkdir()
    found = trained(folder, tmp_path / "av")
    assert found.folder == tmp_path / "disk" / "av"
    assert (tmp_path / "av").is_symlink()
    assert Checkpoint.load(tmp_path / "av").layer == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == ["av", "data", "disk"]


def test_leftovers_of_a_folder(tmp_path):
    """A complete new folder gets its name, an incomplete one goes, and so does an old one."""
    name = f".av.{'0' * 12}"
    for complete in (True, False):
        for suffix in (".old", ".part") if complete else (".part",):
            (tmp_path / f"{name}{suffix}").mkdir()
            (tmp_path / f"{name}{suffix}" / "file").write_text(suffix)
        atomic.remove_leftovers(tmp_path / "av")
        assert [each.name for each in tmp_path.iterdir()] == ["av"]
        assert (tmp_path / "av" / "file").read_text() == ".part"


def test_rows_are_known_by_their_content_when_a_checkpoint_is_measured(folder, tmp_path):
    """The file may have another name, and another file may have its name."""
    out = tmp_path / "av"
    trained(folder, out, held_out=0.4)
    for name in ("rows.parquet", "renamed.parquet"):
        shutil.copy(folder / "rows.parquet", tmp_path / name)
        assert _held_out_of(Published(tmp_path / name), str(out)) == 0.4
    publish(tmp_path / "rows.parquet", records(8))
    assert _held_out_of(Published(tmp_path / "rows.parquet"), str(out)) is None
    # A checkpoint of an earlier version knows its file by name.
    sidecar = out / "nla_meta.yaml"
    tree = yaml.safe_load(sidecar.read_text("utf-8"))
    tree["trained_on"] = [{"file": "rows.parquet", "rows": 5, "held_out": 0.2}]
    sidecar.write_text(json.dumps(tree))
    assert _held_out_of(Published(tmp_path / "rows.parquet"), str(out)) == 0.2


def test_a_state_that_is_not_complete_is_nothing_to_go_on_with(tmp_path):
    files = Files(tmp_path, 1)
    for step in (2, 4, 6):
        state(tmp_path, step)
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text("{")
    found = [(files.steps(asked), asked) for asked in (None, 1, 2, 3, 4, 5, 6, 99)]
    assert [done for done, _ in found] == [4, 4, 2, 2, 4, 4, 4, 4]
