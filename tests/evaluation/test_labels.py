"""Labels of directions: the order, the figures, and matrices of the wrong side."""

import pytest
import torch

from nnsight_nla import NLA, CheckpointError, InjectionError, tiny


def test_what_beats_its_controls_comes_first(nla, residuals):
    noise = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
    alike = residuals[3] + 1e-4 * noise  # Their margins differ by less than is shown.
    matrix = torch.cat([noise, residuals[:4], alike, torch.zeros(1, 128)])
    names = [*(f"noise {n}" for n in range(4)), *(f"residual {n}" for n in range(8)), "zero"]
    labels = nla.label(matrix, names=names)
    assert len(labels) == 13
    first = [each.name.split()[0] for each in labels[:8]]
    assert first == ["residual"] * 8
    order = [(-round(each.margin, 2), each.row) for each in labels[:-1]]
    assert order == sorted(order), "labels with the same figure keep their order"
    assert (labels[-1].name, labels[-1].margin, labels[-1].text) == ("zero", None, None)
    assert "is zero" in labels[-1].error
    thought = nla.explain(matrix, kind="direction")
    for each in labels[:-1]:
        label = thought.trust[each.row]
        assert (each.margin, each.cosine, each.null) == (label.margin, label.cosine, label.null)
        assert (each.text, each.grade) == (thought[each.row].text, "none")
    table = labels.to_pandas()
    assert list(table["name"]) == [each.name for each in labels]
    assert table["margin"].isna().sum() == 1
    note = "its vector is a direction, and the verbalizer was trained on residuals"
    assert str(labels).endswith(note)
    assert note in labels._repr_html_()
    assert labels._repr_html_().index("residual") < labels._repr_html_().index("noise")
    assert repr(labels) == "<Labels of 13 directions>"


def test_rows_are_named_by_number(nla, residuals):
    labels = nla.label(residuals[:2], kind="residual")
    assert {(each.name, each.row) for each in labels} == {("0", 0), ("1", 1)}
    assert labels.note is None
    assert {each.grade for each in labels} <= {"strong", "partial", "weak"}


@pytest.mark.parametrize("call", ["label", "explain"])
def test_a_matrix_of_the_wrong_side_is_asked_about(nla, call):
    with pytest.raises(
        InjectionError, match=r"got \[128, 7\], a vector in each column\. Did you mean \.T\?"
    ):
        getattr(nla, call)(torch.randn(128, 7))
    # A square matrix may be of either side.
    assert nla.explain(torch.randn(128, 128)).shape == (128,)


def test_what_does_not_fit_is_refused(nla, residuals):
    with pytest.raises(InjectionError, match=r"expected a matrix \[rows, 128\], got \[128\]"):
        nla.label(residuals[0])
    with pytest.raises(InjectionError, match="has 1 names for 2 directions"):
        nla.label(residuals[:2], names=["one"])
    with pytest.raises(InjectionError, match="has 2 names for 2 directions"):
        nla.label(residuals[:2], names="ab")
    with pytest.raises(CheckpointError, match="This NLA has no reconstructor"):
        NLA(tiny.paths()["av"]).label(residuals)
