"""What is not a residual of layer K says so: on the handle, and in every view of it."""

import json
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnsight_nla import NLA, Checkpoint, CheckpointError, Explanation, Origin, Sampling, tiny
from nnsight_nla.checkpoint.origin import Kind
from nnsight_nla.cli.tables import explanation_table
from nnsight_nla.explanation.caveats import atypical
from nnsight_nla.explanation.records import Capture
from nnsight_nla.remote.wire import RemoteNLA

SHORT = Sampling(max_new_tokens=12)
NOT_A_RESIDUAL = "its vector is a {}, and the verbalizer was trained on residuals"
OTHER = "its vector may differ from what the verbalizer was trained on: layer is 1, expected 3"
CASES = {
    "difference": ({"kind": "difference"}, NOT_A_RESIDUAL.format("difference"), "differences"),
    "direction": ({"kind": "direction"}, NOT_A_RESIDUAL.format("direction"), "directions"),
    "layer": ({"layer": 1, "claims": "ignore"}, OTHER, "residuals of another layer"),
    "origin": ({"origin": Origin(layer=1), "claims": "ignore"}, OTHER, "of another layer"),
}


@pytest.fixture(params=sorted(CASES))
def case(request, nla, residuals):
    options, said, shown = CASES[request.param]
    thought = nla.explain(residuals[:2], positions=[8, 9], tokens=["a", "b"], **options)
    return thought, said, shown


def test_the_handle_and_its_label_say_it(case):
    thought, said, shown = case
    assert shown in repr(thought)
    assert all(said in row for row in thought.warnings)
    for label in thought.trust:
        assert (str(label.grade), label.reason) == ("none", said)
        assert said in label.line
        assert label.cosine is not None


def test_the_receipt_says_what_it_was_taken_for(case):
    thought, _, shown = case
    convention = thought.receipt.layer_convention
    what = "output of block 1" if "layer" in shown else f"a {shown.removesuffix('s')}"
    assert convention.startswith(f"{what}, taken for the output of block 3, counted from 0")
    assert thought.receipt.facts()["vector"] == convention


def test_text_table_page_json_and_parquet_say_it(case, tmp_path):
    from rich.console import Console

    thought, said, _ = case
    console = Console(width=200, record=True, file=StringIO())
    console.print(explanation_table(thought))
    thought.to_html(tmp_path / "page.html")
    thought.to_parquet(tmp_path / "rows.parquet")
    again = Explanation.from_parquet(tmp_path / "rows.parquet")
    views = {
        "str": str(thought),
        "notebook": thought._repr_html_(),
        "page": (tmp_path / "page.html").read_text("utf-8"),
        "json": json.dumps(thought.to_dict()),
        "table": thought.to_pandas()["warnings"].map(str).str.cat(),
        "terminal": " ".join(console.export_text().split()),
        "parquet": str(again.warnings),
    }
    assert [name for name, view in views.items() if said not in view] == []
    assert again.origin == thought.origin
    assert repr(again).split("resolved")[0] == repr(thought).split("resolved")[0]
    labels: Any = again.trust
    assert {str(each.grade) for each in labels} == {"none"}


@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(["difference", "direction"]), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_no_such_vector_gets_a_grade_whatever_its_size(nla, kind, size, seed):
    drawn = torch.randn(1, 128, generator=torch.Generator().manual_seed(seed))
    thought = nla.explain(size * drawn, kind=kind, sampling=SHORT)
    assert [str(each.grade) for each in thought.trust] == ["none"]


@pytest.fixture(scope="module")
def uncalibrated() -> Any:
    """The tiny pair as a verbalizer that ships no statistics of its training vectors."""
    folders = tiny.paths()
    bare = replace(Checkpoint.load(folders["av"]), calibration=None)
    return NLA(folders["av"], ar=folders["ar"], checkpoint=bare, dtype=torch.float32)


def test_unit_vectors_that_are_not_declared_get_no_grade_without_a_calibration(
    uncalibrated, residuals
):
    """A direction of a residual gets its text back: its cosine alone would be graded strong."""
    directions = torch.nn.functional.normalize(residuals[:4], dim=-1)
    assert {str(each.grade) for each in uncalibrated.explain(residuals[:4]).trust} == {"strong"}
    said = "norm 1, as directions have, usual 15.31. Say so: explain(..., kind='direction')"
    for vectors in (directions, directions.bfloat16()):
        thought = uncalibrated.explain(vectors)
        for label in thought.trust:
            assert (str(label.grade), label.cosine > 0.9) == ("none", True)
            assert said in label.line
    declared = uncalibrated.explain(directions, kind="direction")
    assert not any(said in each for row in declared.warnings for each in row)
    mixed = torch.cat([directions[:1], residuals[:1]])  # One of norm 1 among others proves nothing.
    assert not any(said in each.line for each in uncalibrated.explain(mixed).trust)


def test_a_norm_of_1_is_usual_where_the_training_vectors_have_it():
    def found(usual, vectors=torch.eye(4)):  # noqa: B008
        queue: Any = None
        return atypical(Capture(queue, vectors, 4, 1, Sampling(), usual_norm=usual))

    assert found(1.6) == found(None) == {}
    assert found(15.0)[3].startswith("norm 1, as directions have, usual 15. Say so")
    assert set(found(15.0, torch.diag(torch.tensor([0.0, 1, 1, 1])))) == {1, 2, 3}


def test_a_residual_says_nothing_of_the_kind(nla, residuals):
    plain, said = nla.explain(residuals), nla.explain(residuals, kind="residual", layer=3)
    assert said.text == plain.text
    assert said.warnings == plain.warnings
    assert repr(said) == repr(plain)
    assert [each.grade for each in said.trust] == [each.grade for each in plain.trust]


def test_a_kind_travels_with_a_remote_request(nla, model, residuals):
    stub = RemoteNLA(nla.uid, 3, 128)
    with model.trace("In Paris"):
        sent = stub.explain(stub.layer(model).output[0, -1], kind="difference")
    capture = nla.capture(sent.capture.vectors, **sent.capture.options)
    assert capture.origin.kind == "difference"


def test_a_kind_that_is_none_or_contradicts_is_refused(nla, residuals):
    with pytest.raises(CheckpointError, match="kind is 'delta', expected residual, difference"):
        nla.explain(residuals, kind="delta")
    with pytest.raises(CheckpointError, match="kind is 'difference', but kind is 'direction'"):
        nla.explain(residuals, kind="difference", origin=Origin(kind="direction"))
    assert set(Kind.__args__) == {"residual", "difference", "direction"}
