"""What does not fit is refused before it costs anything, by file and row, with what to type."""

import shutil

import pytest
import torch

from nnsight_nla.training import Settings, TrainingError, Watching, train
from tests.helpers.published import CONTENT, LAYER, WIDTH, base, publish, records

ROW = 5
SUFFIX = ".nla_meta.yaml"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    base(folder / "base")
    # The same weights under another name, and a tokenizer that has moved since.
    shutil.copytree(folder / "base", folder / "other")
    base(folder / "wide" / "base", width=64)
    base(folder / "shallow" / "base", depth=1)
    return folder


def with_row(**changes):
    rows = records(8)
    rows[ROW] = {**rows[ROW], **changes}
    return rows


def prompt(content, role="user"):
    return {"prompt": [{"role": role, "content": content}]}


def without(*columns):
    return [{k: v for k, v in row.items() if k not in columns} for row in records(8)]


# Rows, sidecar, options, and the message; {file} and {folder} are filled in.
CASES = {
    "no marker": (
        with_row(**prompt("Describe.")), {}, {},
        "{file}, row 5: the prompt contains <INJECT> 0 times, expected exactly once, where the "
        "marker goes: 'Describe.'.",
    ),
    "two markers": (
        with_row(**prompt("<INJECT> and <INJECT>")), {}, {},
        "{file}, row 5: the prompt contains <INJECT> 2 times, expected exactly once, where the "
        "marker goes: '<INJECT> and <INJECT>'.",
    ),
    "a system prompt": (
        with_row(**prompt(CONTENT, "system")), {}, {},
        "{file}, row 5: the prompt has the roles system, expected one user message.",
    ),
    "another prompt": (
        with_row(**prompt("Say <concept><INJECT></concept>")), {}, {},
        "{file}, row 5: the prompt differs from the checkpoint's template, which inference uses. "
        "The prompt begins 'Say <concept>{{injection_char}}</concept>', the template 'You are "
        "a meticulous AI researcher conducting an important i'. Describe the checkpoint with the "
        "prompt of the rows: describe(..., template=content.replace('<INJECT>', "
        "'{{injection_char}}')).",
    ),
    "another width": (
        with_row(activation_vector=[1.0] * 8), {}, {},
        "{file}, row 5: activation_vector has shape [8], expected [32] (the checkpoint's d_model). "
        "Train from the model that the rows were read from.",
    ),
    "no vector": (
        with_row(activation_vector=None), {}, {},
        "{file}, row 5: activation_vector has shape [0], expected [32] (the checkpoint's d_model). "
        "Train from the model that the rows were read from.",
    ),
    "a zero vector": (
        with_row(activation_vector=[0.0] * WIDTH), {}, {},
        "{file}, row 5: activation_vector is zero, it has no direction. Remove the row.",
    ),
    "an empty response": (
        with_row(response="<explanation>\n\n</explanation>"), {}, {},
        "{file}, row 5: the response is empty ('<explanation>\\n\\n</explanation>'), so there is "
        "nothing to learn. Label the row, or remove it.",
    ),
    "no response": (
        with_row(response=None), {}, {},
        "{file}, row 5: the response is empty (None), so there is nothing to learn. Label the row, "
        "or remove it.",
    ),
    "no tags": (
        with_row(response="About Paris."), {}, {},
        "{file}, row 5: the reply has no <explanation> tag, and a verbalizer would learn to write "
        "that: 'About Paris.'. Write '<explanation>\\n' + text + '\\n</explanation>'.",
    ),
    "a row of another layer": (
        with_row(activation_layer=2), {}, {},
        "{file}, row 5: activation_layer is 2, the sidecar says layer 1. A verbalizer reads one "
        "layer: remove the other rows, or correct the sidecar.",
    ),
    "no labels": (
        without("response", "prompt"), {}, {},
        "{file} has no labels: a column 'response' or 'api_explanation' with an explanation for "
        "each row. It has activation_vector, doc_id, activation_layer.",
    ),
    "no documents": (
        without("doc_id"), {}, {"held_out": 0.2},
        "{file} has no column 'doc_id', so no documents can be held out of it, and rows of one "
        "text would be on both sides. Hold out none: held_out=0.",
    ),
    "another marker": (
        records(8), {"tokens.injection_token_id": 7}, {},
        "{file}.nla_meta.yaml: tokens.injection_token_id is 7, the tokenizer of {folder}/base "
        "gives 1492. The rows were made with another tokenizer: train from the version of the "
        "model that they were read from, or make the rows again.",
    ),
    "another neighbour": (
        records(8), {"tokens.injection_left_neighbor_id": 7}, {},
        "{file}.nla_meta.yaml: tokens.injection_left_neighbor_id is 7, the tokenizer of "
        "{folder}/base gives 32. The rows were made with another tokenizer: train from the "
        "version of the model that they were read from, or make the rows again.",
    ),
    "another suffix": (
        records(8), {"tokens.critic_suffix_ids": [1, 2]}, {},
        "{file}.nla_meta.yaml: tokens.critic_suffix_ids is [1, 2], the tokenizer of {folder}/base "
        "gives [303, 825, 32, 602, 988, 32]. The rows were made with another tokenizer: train from "
        "the version of the model that they were read from, or make the rows again.",
    ),
    "another base": (
        records(8), {}, {"base": "other"},
        "The vectors of {file} were read from base (by its sidecar), not from {folder}/other. Pass "
        "base='base'; or, if this is the same model under another name, base_name='base'.",
    ),
    "another layer": (
        records(8), {}, {"layer": 3},
        "layer=3, but the vectors of {file} are from layer 1 (by its sidecar).",
    ),
    "a base of another width": (
        records(8), {}, {"base": "wide/base"},
        "The vectors of {file} have width 32 (by its sidecar); {folder}/wide/base has d_model 64.",
    ),
    "a base that ends below": (
        records(8), {}, {"base": "shallow/base"},
        "The vectors of {file} are from layer 1; {folder}/shallow/base has blocks 0 to 0.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named(bases, tmp_path, case):
    rows, sidecar, options, message = CASES[case]
    file = publish(tmp_path / "rows.parquet", rows, sidecar=sidecar)
    options = {"held_out": 0.0, "base": "base", **options}
    options["base"] = bases / options["base"]
    with pytest.raises(TrainingError) as caught:
        train("av", file, out=tmp_path / "av", settings=Settings(steps=1), **options)
    assert str(caught.value) == message.format(file=file, folder=bases)
    assert not (tmp_path / "av").exists()
    # Before any weights are loaded.
    assert "_load" not in {entry.name for entry in caught.traceback}


def test_a_file_without_a_sidecar_needs_the_layer_only(bases, tmp_path):
    file = publish(tmp_path / "rows.parquet", records(8))
    file.with_name(file.name + SUFFIX).unlink()
    options = {"base": bases / "other", "held_out": 0.0, "watching": Watching(rows=0)}
    with pytest.raises(TrainingError) as caught:
        train("ar", file, out=tmp_path / "ar", **options)
    assert str(caught.value) == (
        f"{file} has no sidecar (rows.parquet.nla_meta.yaml) that names the layer of its vectors. "
        "Pass layer=K: the block whose output they are, counted from 0."
    )
    settings = Settings(steps=1, batch_size=4)
    found = train("ar", file, out=tmp_path / "ar", layer=LAYER, settings=settings, **options)
    assert found.checkpoint.base_model == str(bases / "other")
    again = train(
        "ar", file, out=tmp_path / "again", layer=LAYER, settings=settings,
        base_name="acme/model", **options,
    )  # fmt: skip
    assert again.checkpoint.base_model == "acme/model"


def test_no_such_files(bases, tmp_path):
    out = tmp_path / "av"
    with pytest.raises(TrainingError, match="cannot be read as Parquet"):
        train("av", tmp_path / "absent.parquet", base=bases / "base", out=out)
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(TrainingError, match="cannot be read as Parquet"):
        train("av", tmp_path / "text.parquet", base=bases / "base", out=out)
    file = publish(tmp_path / "rows.parquet", records(8), base_model="absent")
    with pytest.raises(TrainingError, match=r"The configuration of base=.* cannot be read"):
        train("av", file, base=tmp_path / "absent", out=out)
    publish(tmp_path / "plain.parquet", [{"text": "no vectors"}])
    with pytest.raises(TrainingError, match="has no column 'activation_vector'; it has text"):
        train("av", tmp_path / "plain.parquet", base=bases / "base", out=out)
    assert torch.is_grad_enabled()
    assert sorted(each.name for each in tmp_path.iterdir() if "av" in each.name) == []
