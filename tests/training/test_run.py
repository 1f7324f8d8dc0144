"""Train from a published file to a folder that loads: resumed, atomic, and measured."""

import itertools
import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from nnsight_nla import NLA, Checkpoint, Sampling
from nnsight_nla.errors import NLAError
from nnsight_nla.training import Files, Lora, Published, Settings, TrainingError, Watching, train
from nnsight_nla.training.published import is_held_out
from tests.helpers.processes import run, run_together, start
from tests.helpers.published import LAYER, WIDTH, base, publish, records

# Five epochs of small batches, so that a run is resumed inside a later one.
SETTINGS = Settings(steps=12, batch_size=9, learning_rate=1e-3, warmup=2)
WATCHING = Watching(every=4, rows=4, max_new_tokens=12)
HELD_OUT = 0.25


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    base(folder / "base")
    publish(folder / "rows.parquet", records())
    return folder


def trained(folder: Path, role: str, out: Path, settings=SETTINGS, watching=WATCHING, **options):
    return train(
        role, folder / "rows.parquet", base=folder / "base", out=out, settings=settings,
        watching=watching, held_out=HELD_OUT, **options,
    )  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {f"{each.name}/{name}": t for each in files for name, t in load_file(each).items()}


def same(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(folder):
    """Verbalizer and reconstructor, with adapters and without."""
    found = {}
    for role in ("av", "ar"):
        for kind, lora in (("full", None), ("lora", Lora(rank=4))):
            settings = Settings(**{**vars(SETTINGS), "lora": lora})
            found[role, kind] = trained(folder, role, folder / f"{role}-{kind}", settings)
    return found


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_what_is_trained_loads_by_its_path(folder, undisturbed, kind):
    nla = NLA(folder / f"av-{kind}", ar=folder / f"ar-{kind}", dtype=torch.float32)
    assert nla.checkpoint.layer == LAYER
    assert nla.checkpoint.injection == Checkpoint.load(folder / "rows.parquet").injection
    vectors = torch.randn(2, WIDTH)
    assert len(nla.explain(vectors, sampling=Sampling(max_new_tokens=8)).raw) == 2
    score = nla.score(["About Paris.", "About Rome."], vectors)
    assert score.baseline.name == "block 1 in rows.parquet"
    assert nla.ar._module.config.num_hidden_layers == LAYER + 1
    meta = yaml.safe_load((folder / f"av-{kind}" / "nla_meta.yaml").read_text())
    assert meta["schema_version"] == 2
    assert meta["training"]["injection_mode"] == "karvonen_add_norm_matched"
    assert meta["trained_on"][0]["file"] == "rows.parquet"
    assert (folder / f"av-{kind}" / "adapter_config.json").is_file() == (kind == "lora")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_what_loads_is_what_was_trained(folder, undisturbed, kind):
    """The held-out figure of the training itself, once more by the product."""
    nla = NLA(folder / f"av-{kind}", ar=folder / f"ar-{kind}", dtype=torch.float32)
    rows = Published(folder / "rows.parquet", part="held out", held_out=HELD_OUT, limit=4)
    (batch,) = rows.batches(WIDTH)
    texts = [each.split("\n")[1] for each in batch.responses]
    figures = [line for line in undisturbed["ar", kind].log if "eval_fve" in line]
    assert [line["step"] for line in figures] == [4, 8, 12]
    measured = nla.score(texts, batch.vectors).mean
    assert measured["fve"] == pytest.approx(figures[-1]["eval_fve"], abs=1e-4)
    assert measured["cosine"] == pytest.approx(figures[-1]["eval_cosine"], abs=1e-4)


def test_a_reconstructors_adapter_fits_the_whole_base(folder, undisturbed):
    """A host has the blocks above K too; the adapter has matrices for those below alone."""
    config = json.loads((folder / "ar-lora" / "adapter_config.json").read_text("utf-8"))
    names = [f"model.layers.{block}.mlp.up_proj" for block in range(LAYER + 2)]
    named = [bool(re.fullmatch(config["target_modules"], name)) for name in names]
    assert named == [True] * (LAYER + 1) + [False]


def test_it_learns_and_says_so(folder, undisturbed):
    for role in ("av", "ar"):
        held = [line["eval_loss"] for line in undisturbed[role, "full"].log if "eval_loss" in line]
        assert held[-1] < held[0]
    last = undisturbed["av", "full"].log[-1]
    assert set(last) == {"step", "eval_loss", "eval_extraction"}


def test_a_reconstructor_measures_the_verbalizer_as_it_learns(folder, undisturbed, tmp_path):
    lines = []
    seen = []
    judges = {"own": lambda *given: seen.append(given) or 0.5}
    watching = Watching(1, 4, folder / "ar-full", max_new_tokens=4, judges=judges)
    settings = Settings(**{**vars(SETTINGS), "steps": 1})
    found = trained(folder, "av", tmp_path / "av", settings, watching, report=lines.append)
    # Four tokens close no tag: every reply counts as a cosine of 0.
    held = next(line for line in found.log if "eval_fve" in line)
    assert held["eval_extraction"] == 0
    assert held["eval_fve"] == pytest.approx(1 - 2 / found.checkpoint.baseline.value)
    assert held["eval_own"] == 0.5
    ((texts, labels, vectors),) = seen
    assert texts == [""] * len(labels)
    rows = Published(folder / "rows.parquet", part="held out", held_out=HELD_OUT, limit=4)
    (batch,) = rows.batches(WIDTH)
    assert labels == [each.split("\n")[1] for each in batch.responses]
    assert torch.equal(vectors, batch.vectors)
    assert "held out: loss" in lines[-1]
    assert "extraction 0.0000" in lines[-1]


def readable(state: Path) -> bool:
    """Whether a checkpoint's last file is there, to its end."""
    try:
        return bool(json.loads(state.read_text("utf-8")))
    except (OSError, ValueError):
        return False


SCRIPT = """
import sys
from pathlib import Path
from tests.training.test_run import SETTINGS, trained
trained(Path(sys.argv[1]), "av", Path(sys.argv[2]))
"""


def test_a_training_that_was_killed_goes_on_to_the_same_weights(folder, undisturbed, tmp_path):
    out = tmp_path / "av"
    state = out.with_name("av.training") / "checkpoint-8" / "trainer_state.json"
    with start(SCRIPT, folder, out) as process:
        deadline = time.monotonic() + 120
        while not readable(state) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    # And an incomplete checkpoint, as a kill in the middle of one leaves it.
    incomplete = state.parents[1] / "checkpoint-11"
    incomplete.mkdir()
    (incomplete / "trainer_state.json").write_text('{"global_step": 1')
    lines = []
    found = trained(folder, "av", out, report=lines.append)
    assert not any("step 4 of" in line or "step 8 of" in line for line in lines)
    assert found.log[-1]["step"] == 12
    assert found.log[-1] == undisturbed["av", "full"].log[-1]
    assert same(out, folder / "av-full")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["av"]


def test_a_checkpoint_that_could_not_be_written_is_written_by_the_next_try(
    folder, undisturbed, tmp_path, monkeypatch
):
    from nnsight_nla.training import saving

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(saving, "save_file", full)
        with pytest.raises(TrainingError) as caught:
            trained(folder, "ar", tmp_path / "ar")
    assert str(caught.value) == (
        f"The disk of {tmp_path} is full: ar could not be written. Free some space. The training "
        f"is in {tmp_path / 'ar.training'}: rerun with the original options to save it."
    )
    assert not (tmp_path / "ar").exists()
    lines = []
    again = trained(folder, "ar", tmp_path / "ar", report=lines.append)
    assert not any(line.startswith("step") for line in lines)
    assert again.log == undisturbed["ar", "full"].log
    assert same(tmp_path / "ar", folder / "ar-full")


def test_another_training_does_not_go_on_with_it(folder, tmp_path):
    work = tmp_path / "av.training"
    work.mkdir()
    # As earlier versions wrote it, which named the role otherwise.
    original = {**vars(SETTINGS), "half": "ar", "batch_size": 64}
    (work / "begun.json").write_text(json.dumps(original))
    state(work, 4)
    with pytest.raises(TrainingError) as caught:
        trained(folder, "av", tmp_path / "av")
    message = str(caught.value)
    assert message.startswith(
        f"{work} holds a training with other options. Rerun with the original options to resume: "
        "role='ar' (now 'av'), "
    )
    assert "batch_size=64 (now 9). Or remove that folder" in message
    assert not (tmp_path / "av").exists()


def state(work: Path, step: int) -> None:
    """As much of a trainer's checkpoint as makes it one to resume from."""
    (work / f"checkpoint-{step}").mkdir(parents=True)
    (work / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")


def test_what_is_there_is_not_written_over(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match=r" exists\. Choose another out=, or remove it"):
        trained(folder, "av", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(where)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def test_a_full_disk_keeps_the_last_checkpoint(folder, small_disk):
    """One of the training's checkpoints has its place, the next one has not."""
    settings = Settings(**{**vars(SETTINGS), "lora": Lora(rank=8)})
    watching = Watching(every=1, rows=0)
    ballast = small_disk / "ballast"

    def fill(line):
        if line.startswith("step 2 "):
            ballast.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - 80_000))

    with pytest.raises(TrainingError) as caught:
        trained(folder, "av", small_disk / "av", settings, watching, report=fill)
    work = small_disk / "av.training"
    assert str(caught.value) == (
        f"The disk of {work} is full: the training's checkpoints could not be written. Free some "
        "space, and rerun with the original options to resume."
    )
    assert isinstance(caught.value, NLAError)
    assert not (small_disk / "av").exists()
    left = Files(work, 1).last()
    assert left is not None
    ballast.unlink()
    found = trained(folder, "av", small_disk / "av", settings, watching)
    assert found.log[-1]["step"] == 12
    assert sorted(each.name for each in small_disk.iterdir()) == ["av"]


def test_documents_are_held_out_whole(folder):
    parts = {
        part: list(Published(folder / "rows.parquet", part=part, held_out=HELD_OUT).batches(WIDTH))
        for part in ("train", "held out", "all")
    }
    names = {part: [n for b in batches for n in b.names] for part, batches in parts.items()}
    assert sorted(names["train"] + names["held out"]) == sorted(names["all"])
    assert names["held out"]
    numbers = [int(name.rpartition(" ")[2]) for name in names["held out"]]
    assert {number // 2 for number in numbers} == {
        number // 2 for number in range(24) if number in numbers
    }
    assert all((number ^ 1) in numbers for number in numbers)
    # What is held out at one share is held out at every larger one; about so many are.
    few, more = (
        {i for i in range(10_000) if is_held_out(f"doc {i}", share)} for share in (0.05, 0.2)
    )
    assert few < more
    assert len(few) == pytest.approx(500, rel=0.15)
    (batch,) = parts["held out"]
    expected = [records()[number]["activation_vector"] for number in numbers]
    torch.testing.assert_close(batch.vectors, torch.tensor(expected))


def rows_of(folder, **options) -> list[int]:
    batches = Published(folder, held_out=HELD_OUT, **options).batches(WIDTH)
    return [int(name.rpartition(" ")[2]) for batch in batches for name in batch.names]


@pytest.mark.parametrize("part", ["train", "held out", "all"])
@pytest.mark.parametrize("limit", [1, 5, 20, 64, 10_000])
def test_a_part_of_the_rows_is_spread_over_the_documents(tmp_path, part, limit):
    """A long document comes first: the first rows would all be of it."""
    lengths = [40, *range(1, 30), 40]
    documents = [f"document {i}" for i, length in enumerate(lengths) for _ in range(length)]
    plain = records(len(documents))
    rows = [{**row, "doc_id": each} for row, each in zip(plain, documents, strict=True)]
    file = publish(tmp_path / "rows.parquet", rows)
    whole, chosen = rows_of(file, part=part), rows_of(file, part=part, limit=limit)
    assert len(chosen) == len(set(chosen)) == min(limit, len(whole))
    assert set(chosen) <= set(whole)
    assert chosen == sorted(chosen)
    available = Counter(documents[row] for row in whole)
    taken = Counter(documents[row] for row in chosen)
    # None has two rows more than another that has some left.
    most = max(taken.values())
    assert all(taken[each] >= min(most - 1, count) for each, count in available.items())
    assert len(Published(file, part=part, held_out=HELD_OUT, limit=limit)) == len(chosen)
    # A document is on one side only.
    others = {documents[row] for row in rows_of(file, part="train")}
    assert part != "held out" or not others & set(taken)
    if 1 < limit < 10_000:  # And not the first rows of each.
        firsts = {documents.index(each) for each in available}
        assert set(chosen) != set(sorted(firsts)[: len(chosen)])


def test_rows_without_documents_are_spread_over_the_file(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "doc_id"} for row in records(20)]
    file = publish(tmp_path / "rows.parquet", rows)
    assert rows_of(file, limit=4) == [0, 5, 10, 15]
    assert rows_of(file, limit=99) == list(range(20))


def test_the_measured_rows_are_of_as_many_documents_as_there_are(folder, tmp_path):
    seen, judges = [], {"own": lambda _, __, vectors: seen.append(vectors) or 0.0}
    train(
        "av", folder / "rows.parquet", base=folder / "base", out=tmp_path / "av", held_out=0.6,
        settings=replace(SETTINGS, steps=1), watching=Watching(1, 4, None, 2, judges=judges),
    )  # fmt: skip
    vectors = torch.tensor([row["activation_vector"] for row in records()])
    numbers = [int((vectors == each).all(dim=1).nonzero()) for each in seen[0]]
    documents = {f"document {number // 2}" for number in numbers}
    assert len(documents) == 4
    assert all(is_held_out(each, 0.6) for each in documents)


def test_ready_made_labels_and_a_reconstructors_prompts_are_rows_too(tmp_path):
    plain = records(4)
    for row in plain:
        row["text"] = row.pop("response").split("\n")[1]
    ready = [{k: r[k] for k in ("activation_vector", "doc_id")} for r in plain]
    ready = [{**short, "api_explanation": r["text"]} for short, r in zip(ready, plain, strict=True)]
    template = "Summary of the following text: <text>{}</text> <summary>"
    filled = [{**r, "prompt": template.format(r["text"])} for r in plain]
    for name, rows in (("ready", ready), ("filled", filled)):
        (batch,) = Published(publish(tmp_path / name, rows)).batches(WIDTH)
        assert batch.prompts == [None] * 4
        assert batch.responses == [each["response"] for each in records(4)]


def test_a_million_rows_do_not_lie_in_memory(folder, tmp_path):
    """The vectors are mapped from a file that nobody else sees and nothing leaves behind."""
    from nnsight_nla.training.compatibility import compatible_checkpoint
    from nnsight_nla.training.rows import verbalizer_rows

    source = Published(folder / "rows.parquet", scratch=tmp_path)
    live, checkpoint = compatible_checkpoint(source, folder / "base")
    rows, _ = verbalizer_rows(source, live, checkpoint)
    maps = Path("/proc/self/maps").read_text()
    assert f"{tmp_path}/" in maps
    assert list(tmp_path.iterdir()) == []
    expected = [row["activation_vector"] for row in records()]
    torch.testing.assert_close(rows.vectors, torch.tensor(expected))
    assert rows.lengths() == [len(rows[i]["input_ids"]) for i in range(len(rows))]


def test_tensorboard(folder, tmp_path, monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: False)
    watching = Watching(every=4, rows=0, tensorboard=tmp_path / "board")
    with pytest.raises(TrainingError) as caught:
        trained(folder, "av", tmp_path / "av", watching=watching)
    assert str(caught.value) == (
        "TensorBoard is not installed: pip install 'nnsight-nla[tensorboard]'. Or remove "
        f"tensorboard={str(tmp_path / 'board')!r}."
    )
    monkeypatch.undo()
    watching = Watching(every=4, rows=4, max_new_tokens=12, tensorboard=tmp_path / "board")
    done = trained(folder, "av", tmp_path / "av", watching=watching)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board")).Reload()
    for tag, name in (("train/loss", "loss"), ("eval/extraction", "eval_extraction")):
        shown = {each.step: each.value for each in events.Scalars(tag)}
        logged = {line["step"]: line[name] for line in done.log if name in line}
        assert shown == pytest.approx(logged)
        assert len(shown) >= 3


SEVERAL = """
import sys
from pathlib import Path
from nnsight_nla.training import Lora, Settings, Watching, train

folder, batch, out = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
for role, lora in (("av", None), ("ar", Lora(rank=4))):
    settings = Settings(steps=2, batch_size=batch, learning_rate=1e-3, warmup=0, lora=lora)
    done = train(
        role, folder / "even.parquet", base=folder / "base", out=folder / out / role,
        settings=settings, watching=Watching(every=1, rows=0), held_out=0, report=print,
    )
    assert (done.folder / "nla_meta.yaml").is_file()
"""


def test_two_processes_train_what_one_does_with_all_of_the_rows(folder):
    """Each gets one of two rows, the gradients are averaged, and the first one reports."""
    rows = [{**row, "response": records(1)[0]["response"]} for row in records(8)]
    publish(folder / "even.parquet", rows)
    alone = run(SEVERAL, folder, 8, "one")
    assert alone.returncode == 0, alone.stderr
    for text in (alone.stdout, run_together(SEVERAL, folder, 4, "two")):
        assert text.count("step 1 of 2, loss") == 2
    for role in ("av", "ar"):
        one, two = (weights(folder / name / role) for name in ("one", "two"))
        assert set(one) == set(two)
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, rtol=0, atol=2e-5)
    assert sorted(each.name for each in (folder / "two").iterdir()) == ["ar", "av"]


@pytest.mark.parametrize("role", ["av", "ar"])
@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["full", "lora"])
def test_bfloat16(folder, undisturbed, tmp_path, role, lora):
    """A base as they are published, in bfloat16, and a forward pass that computes in it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nnsight_nla.training import trainer

    narrow = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(folder / "base").bfloat16().save_pretrained(narrow)
    AutoTokenizer.from_pretrained(folder / "base").save_pretrained(narrow)
    publish(tmp_path / "rows.parquet", records())
    seen = {}
    real = trainer.fit

    def fit(model, *given, **options):
        def look(module, _, output):
            seen["computed"] = output.dtype
            seen["held"] = {each.dtype for each in model.parameters() if each.requires_grad}
            seen["frozen"] = {each.dtype for each in model.parameters() if not each.requires_grad}

        first = next(each for each in model.modules() if type(each) is torch.nn.Linear)
        handle = first.register_forward_hook(look)
        log = real(model, *given, **options)
        handle.remove()
        return log

    settings = Settings(**{**vars(SETTINGS), "lora": lora, "precision": "bfloat16"})
    with pytest.MonkeyPatch.context() as patch:
        for module in ("verbalizer", "reconstructor"):
            patch.setattr(f"nnsight_nla.training.{module}.fit", fit)
        done = trained(tmp_path, role, tmp_path / role, settings)
    # What is trained is float32 wherever it is; a step of 3e-5 is lost in bfloat16.
    assert seen["computed"] == torch.bfloat16
    assert seen["held"] == {torch.float32}
    assert lora is None or seen["frozen"] == {torch.bfloat16}
    kind = "full" if lora is None else "lora"
    wide = [line["loss"] for line in undisturbed[role, kind].log if "loss" in line]
    losses = [line["loss"] for line in done.log if "loss" in line]
    assert losses[0] == pytest.approx(wide[0], rel=0.03)
    assert losses[-1] < 0.9 * losses[0]
    stored = {each.dtype for each in weights(tmp_path / role).values()}
    assert stored == ({torch.bfloat16} if lora is None else {torch.float32})
    if role == "av":
        nla = NLA(tmp_path / "av", dtype="bfloat16", sampling=Sampling(max_new_tokens=8))
        told = nla.explain(torch.randn(3, WIDTH))
        assert all(told.raw)
        assert {each.dtype for each in nla.av._module.parameters()} >= {torch.bfloat16}


def test_a_gpu_without_bfloat16_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "An old GPU")
    from nnsight_nla.training import run
    from nnsight_nla.training.trainer import fit

    # A command says so before it loads anything.
    monkeypatch.setattr(run, "_load", lambda *_: pytest.fail("was loaded"))
    narrow = Settings(precision="bfloat16")
    for started in (
        lambda: fit(None, None, None, narrow),
        lambda: trained(folder, "av", tmp_path / "av", narrow),
    ):
        with pytest.raises(TrainingError) as caught:
            started()
        assert str(caught.value) == (
            "An old GPU does not support bfloat16. Train in float32: Settings(precision='float32')."
        )
    assert list(tmp_path.iterdir()) == []


def test_batches_are_of_about_one_length_and_in_no_order_of_it():
    from nnsight_nla.training.trainer import _Order

    lengths = torch.randint(20, 90, (1003,), generator=torch.Generator().manual_seed(0)).tolist()
    order = _Order(lengths, 8, seed=3)
    rows = list(order)
    assert sorted(rows) == list(range(1003))
    assert len(order) == 1003
    batches = [[lengths[row] for row in rows[start : start + 8]] for start in range(0, 1003, 8)]
    assert max(map(max, batches)) == max(batches[0])
    spread = sum(max(each) - min(each) for each in batches) / len(batches)
    assert spread < 5
    means = torch.tensor([sum(each) / len(each) for each in batches[1:-1]])
    falls = (means[1:] < means[:-1]).float().mean()
    assert 0.4 < falls < 0.6
    assert list(_Order(lengths, 8, seed=3)) == rows
    order.set_epoch(1)
    assert list(order) != rows
    assert [*_Order([5, 6], 8, seed=0)] in ([0, 1], [1, 0])


@pytest.mark.parametrize("role", ["av", "ar"])
@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_that_is_saved(folder, undisturbed, tmp_path, role, lora, dtype):
    settings = replace(SETTINGS, lora=lora, steps=12)
    watching = replace(WATCHING, rows=0)
    trained(folder, role, tmp_path / role, settings, watching, save_dtype=dtype)
    wide = weights(undisturbed[role, "full" if lora is None else "lora"].folder)
    found = weights(tmp_path / role)
    assert set(found) == set(wide)
    for name, weight in found.items():
        assert torch.equal(weight, wide[name].to(getattr(torch, dtype)))
    if role == "av":
        nla = NLA(tmp_path / "av", dtype="float32", sampling=Sampling(max_new_tokens=4))
        assert all(nla.explain(torch.randn(2, WIDTH)).raw)


def test_a_dtype_or_an_attention_that_there_is_not(folder, tmp_path, monkeypatch):
    from nnsight_nla.training import run

    monkeypatch.setattr(run, "_load", lambda *_: pytest.fail("was loaded"))
    with pytest.raises(TrainingError) as caught:
        trained(folder, "av", tmp_path / "av", save_dtype="float23")
    assert str(caught.value) == "save_dtype='float23': expected one of float32, bfloat16, float16."
    for attention in ("none", "flash_attention_2"):
        with pytest.raises(TrainingError) as caught:
            trained(folder, "av", tmp_path / "av", attention=attention)
        assert str(caught.value).startswith(f"attention='{attention}' does not work for {folder}")
        assert str(caught.value).endswith(
            "Choose another, such as attention='eager', or leave it out."
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("role", ["av", "ar"])
def test_attention_is_computed_as_it_was_chosen(folder, undisturbed, tmp_path, monkeypatch, role):
    from nnsight_nla.training import run

    seen, load = [], run._load

    def look(*given):
        model, stored = load(*given)
        seen.append(model.config._attn_implementation)
        return model, stored

    monkeypatch.setattr(run, "_load", look)
    watching = replace(WATCHING, rows=0)
    found = trained(folder, role, tmp_path / role, watching=watching, attention="eager")
    assert seen == ["eager"]
    losses = [line["loss"] for line in found.log if "loss" in line]
    before = [line["loss"] for line in undisturbed[role, "full"].log if "loss" in line]
    assert losses == pytest.approx(before, abs=1e-3)


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


def paced(monkeypatch, *, steps, accumulation=1, first=1.0, each=1.0, logging=10**9):
    """The lines of a training whose passes take so many seconds, with the time of each."""
    from types import SimpleNamespace

    from nnsight_nla.training import reporting

    clock, lines = Clock(), []
    monkeypatch.setattr(reporting, "time", clock)
    reporting = reporting.Reporting(lambda line: lines.append((clock.now - 100, line)))
    args = SimpleNamespace(
        gradient_accumulation_steps=accumulation, train_batch_size=8, world_size=2
    )
    state = SimpleNamespace(global_step=0, max_steps=steps)
    reporting.on_train_begin(args, state, None)
    for step in range(1, steps + 1):
        for number in range(1, accumulation + 1):
            clock.now += first if step == number == 1 else each
            control = SimpleNamespace(should_log=step % logging == 0)
            if number < accumulation:
                reporting.on_substep_end(args, state, control)
                continue
            state.global_step = step
            reporting.on_step_end(args, state, control)
            if control.should_log:
                reporting.on_log(args, state, control, {"loss": 1.0})
    return lines


def test_the_rate_and_the_time_left_are_known_after_the_first_pass(monkeypatch):
    lines = paced(monkeypatch, steps=1000, first=5.0, each=2.0, logging=100)
    assert lines[0] == (5.0, "step 1 of 1000, 3.2 rows/s, about 83 min left")
    # The first pass was slow, the others count; and the lines become rarer.
    assert lines[1] == (15.0, "step 6 of 1000, 8 rows/s, about 33 min left")
    assert (203.0, "step 100 of 1000, loss 1.0000, 8 rows/s, about 30 min left") in lines
    assert lines[-1] == (2003.0, "step 1000 of 1000, loss 1.0000, 8 rows/s")
    assert 40 < len(lines) < 80
    gaps = [b - a for (a, _), (b, _) in itertools.pairwise(lines)]
    assert max(gaps) <= 203
    assert all(gap <= max(10, 0.12 * at) + 2 for (at, _), gap in zip(lines, gaps, strict=False))


def test_a_step_of_many_passes_is_not_silent(monkeypatch):
    lines = paced(monkeypatch, steps=10, accumulation=64, first=10.0, each=10.0)
    assert lines[0] == (
        10.0, "step 0 of 10 (pass 1 of 64 of the next), 1.6 rows/s, about 1.8 h left",
    )  # fmt: skip
    assert lines[1][0] == 20.0
    assert any(at > 640 and line.startswith("step 1 of 10") for at, line in lines)
