"""Train a verbalizer of several vectors: each row has a vector for each marker of the prompt."""

import re
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from nnsight_nla import NLA, Sampling
from nnsight_nla.core.injection import write_slots
from nnsight_nla.training import (
    INJECT,
    Published,
    Settings,
    TrainingError,
    Watching,
    describe,
    train,
)
from nnsight_nla.training.rows import checked_batches, collate, verbalizer_rows
from nnsight_nla.training.verbalizer import InjectionHook
from nnsight_nla.training.watching import Role
from tests.helpers.published import WIDTH, base, publish, records, tokenizer

TEMPLATE = "From {injection_char} to {injection_char}.\n\nPlease provide an explanation."
SETTINGS = Settings(steps=2, batch_size=6, learning_rate=1e-3, warmup=1)


def described():
    return describe(
        tokenizer(), layer=1, d_model=WIDTH, base_model="base", template=TEMPLATE,
        vectors=2, ar_template=None,
    )  # fmt: skip


def rows(number: int = 24) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    content = TEMPLATE.replace("{injection_char}", INJECT)
    return [
        {
            "prompt": [{"role": "user", "content": content}],
            "response": f"<explanation>\nFrom {i % 3}.\n</explanation>",
            "activation_vectors": torch.randn(2, WIDTH, generator=generator).tolist(),
            "doc_id": f"document {i // 2}",
        }
        for i in range(number)
    ]


def write(file, listed, tree=None):
    pq.write_table(pa.Table.from_pylist(listed), file, row_group_size=7)
    tree = (tree or described().to_sidecar("av")) | {"kind": "nla_dataset"}
    beside = file.with_name(f"{file.name}.nla_meta.yaml")
    beside.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    base(folder / "base")
    write(folder / "rows.parquet", rows())
    return folder


def test_a_file_has_the_rows_of_a_list_and_each_marker_gets_its_vector(folder):
    listed, prompt = verbalizer_rows(rows(), tokenizer(), described())
    read, _ = verbalizer_rows(Published(folder / "rows.parquet"), tokenizer(), described())
    assert len(listed) == len(read) == 24
    for one, other in ((listed[i], read[i]) for i in range(24)):
        assert torch.equal(one.pop("vector"), other.pop("vector"))
        assert one == other
    batch = collate([listed[0], listed[1]])
    assert batch["sites"].tolist() == [list(prompt.sites)] * 2
    assert len(set(prompt.sites)) == 2
    wanted = torch.tensor([row["activation_vectors"] for row in rows(2)])
    assert torch.equal(batch["vectors"], wanted)
    hidden = torch.randn(2, batch["input_ids"].shape[1], WIDTH)
    block = torch.nn.Identity()
    hook = InjectionHook(prompt.sites, described().injection)
    hook.vectors, hook.sites = batch["vectors"], batch["sites"]
    made, step = hook(block, (), hidden), hook(block, (), hidden[:, :1])
    expected = write_slots(hidden, wanted, batch["sites"], described().injection)
    assert torch.equal(made, expected)
    assert torch.equal(step, hidden[:, :1])  # A generation step, after the prompt.


def test_what_is_trained_explains_two_vectors(folder):
    trained = train(
        "av", folder / "rows.parquet", base=folder / "base", out=folder / "av", settings=SETTINGS,
        held_out=0.25, watching=Watching(every=2, rows=4, max_new_tokens=4, best="extraction"),
    )  # fmt: skip
    assert {"eval_loss", "eval_extraction"} <= set(trained.log[-1]) | set(trained.log[-2])
    nla = NLA(folder / "av", dtype=torch.float32, sampling=Sampling(max_new_tokens=3))
    assert (nla.checkpoint.vectors, nla.checkpoint.ar_template) == (2, None)
    pairs = torch.tensor([row["activation_vectors"] for row in rows(3)])
    assert len(nla.explain(pairs).raw) == 3
    card = (folder / "av" / "README.md").read_text("utf-8")
    assert "explains 2 residual-stream vectors of base together" in card
    assert "nla.explain(torch.stack([a, b], dim=-2)).text" in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_vectors": [[1.0] * WIDTH]}, "has 1 vectors, expected 2, one for each marker"),
        ({"activation_vectors": None}, "row 3: activation_vectors has 0 vectors, expected 2"),
        ({"activation_vectors": [[1.0] * 5] * 2}, "row 3: activation_vector has shape [5]"),
        (
            {"activation_vectors": [[1.0] * WIDTH, [0.0] * WIDTH]},
            "row 3: vector 1 of activation_vectors is zero",
        ),
        (
            {"prompt": [{"role": "user", "content": f"One {INJECT}."}]},
            "contains <INJECT> 1 times, expected 2 times, where each marker goes",
        ),
    ],
)
def test_a_bad_row_is_found_before_any_weights_are_loaded(folder, tmp_path, changes, message):
    listed = rows(6)
    listed[3] |= changes
    file = write(tmp_path / "rows.parquet", listed)
    with pytest.raises(TrainingError, match=re.escape(message)):
        train("av", file, base=folder / "base", out=tmp_path / "av", held_out=0)
    if changes.get("activation_vectors", True):
        with pytest.raises(TrainingError, match=r"^Row 3: "):
            list(checked_batches(listed, described(), prompts=True))


def test_other_files_and_figures(folder, tmp_path):
    def refused(message, role: Role = "av", file=folder / "rows.parquet", **options):
        with pytest.raises(TrainingError, match=re.escape(message)):
            train(role, file, base=folder / "base", out=tmp_path / "out", **options)

    refused("a verbalizer (av) with a marker for each, which has no reconstructor", "ar")
    refused("leave ar and grounded out", watching=Watching(ar=folder / "base"))
    one = replace(described(), vectors=None).to_sidecar("av")
    file = write(tmp_path / "rows.parquet", rows(4), one)
    refused("has several vectors in each row, and its sidecar", file=file)
    file = publish(tmp_path / "single.parquet", records(4))
    write(file, records(4), described().to_sidecar("av"))
    refused("has one vector in each row, and its sidecar", file=file)
    with pytest.raises(TrainingError, match=r"of several vectors each .*, expected rows with an"):
        next(Published(folder / "rows.parquet").vectors(WIDTH))
    with pytest.raises(TrainingError, match=r"Row 0 has no activation_vectors; .* of 2 vectors"):
        list(checked_batches(records(2), described(), prompts=True))
