"""What columns and fields are called: in tables, receipts and plain data, now and before."""

import json

import pandas as pd
import pytest

from nnsight_nla.core.trust import Trust


@pytest.fixture
def thought(nla, residuals):
    return nla.explain(residuals[-2:])


def test_the_two_cosines_have_two_names(nla, thought):
    table = thought.to_pandas()
    assert "cosine" not in table.columns
    assert table["injection_cosine"].tolist() == pytest.approx([1, 1], abs=1e-5)
    labels = thought.trust
    assert table["reconstruction_cosine"].tolist() == [label.cosine for label in labels]
    assert table["fve"].tolist() == [label.fve for label in labels]
    assert table["grade"].tolist() == [str(label.grade) for label in labels]
    scores = nla.score(thought).to_pandas()["reconstruction_cosine"]
    assert scores.tolist() == pytest.approx(table["reconstruction_cosine"].tolist(), abs=1e-5)


def test_trust_is_text_in_every_table_and_a_record_on_the_handle(model, nla, thought):
    reading = nla.read(model, "People in Paris speak").to_pandas()
    for table in (thought.to_pandas(), reading):
        assert all(isinstance(each, str) for each in table["trust"])
        assert table["trust"].iloc[-1].startswith("reconstruction: ")
        assert set(table["grade"]) <= {"strong", "partial", "weak", "none"}
        assert "label" not in table.columns
    assert isinstance(thought[0].trust, Trust)
    record = thought.to_dict()["explanations"][0]
    assert record["trust"] == thought[0].trust.line
    assert record["label"] == thought[0].trust.to_dict()


def test_other_samples_share_the_grade_and_not_the_cosine(nla, residuals):
    from nnsight_nla import Sampling

    drawn = nla.explain(residuals[-1], samples=2, sampling=Sampling(temperature=1.0))
    table = drawn.to_pandas()
    assert table["reconstruction_cosine"].isna().tolist() == [False, True]
    assert table["fve"].isna().tolist() == [False, True]
    assert table["grade"].nunique() == 1


def test_the_old_names_work_and_warn(nla, thought):
    table, record = thought.to_pandas(), thought.to_dict()["explanations"][0]
    with pytest.warns(DeprecationWarning, match="'cosine' is called 'injection_cosine' now"):
        assert table["cosine"].tolist() == table["injection_cosine"].tolist()
    with pytest.warns(DeprecationWarning, match="'cosine' is called 'injection_cosine' now"):
        assert record["cosine"] == record["injection_cosine"]
    with pytest.warns(DeprecationWarning, match=r"trust\['grade'\] of a table"):
        assert record["trust"]["grade"] == "strong"
    with pytest.warns(DeprecationWarning, match="Receipt.cosine is called injection_cosine"):
        assert thought.receipt.cosine == thought.receipt.injection_cosine
    with pytest.warns(DeprecationWarning, match="Reply.cosine is called injection_cosine"):
        assert thought.capture.replies[0, 0].cosine == pytest.approx(1, abs=1e-5)
    score = nla.score(thought)
    with pytest.warns(DeprecationWarning, match="'cosine' is called 'reconstruction_cosine' now"):
        assert score.to_pandas()["cosine"].tolist() == pytest.approx(score.cosine.tolist())
    with pytest.warns(DeprecationWarning, match="'cosine' is called 'reconstruction_cosine' now"):
        assert score.to_dict()["mean"]["cosine"] == score.mean["cosine"]


def test_plain_data_is_json_and_a_table_is_a_table(thought):
    plain = json.loads(json.dumps(thought.to_dict(), allow_nan=False))
    assert isinstance(plain["explanations"][0]["trust"], str)
    assert isinstance(pd.concat([thought.to_pandas(), thought.to_pandas()]), pd.DataFrame)


def test_a_receipt_is_a_line_or_a_small_table(thought):
    receipt = thought.receipt
    assert repr(receipt) == "<Receipt of weights/av: add at block 1, marker at 94>"
    lines = str(receipt).splitlines()
    assert len(lines) == 9
    assert max(map(len, lines)) < 90
    assert "greedy, at most 200 tokens" in str(receipt)
    assert "injection cosine" in receipt._repr_html_()
    null = str(thought[0].capture.queue.receipt(thought[0].capture))
    assert "injection cosine" not in null  # Of no row.


def test_a_label_is_a_line_and_a_few_when_it_is_printed(thought):
    label = thought[0].trust
    assert repr(label) == f"<Trust {'; '.join(label.lines)}>"
    assert str(label) == "\n".join(label.lines)
    assert label._repr_html_().count("<div>") == len(label.lines)
    assert "(denominator 0.972: the variance of 18,000 vectors)" in label.line
