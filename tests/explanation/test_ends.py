"""A difference, explained by both ends and both signs."""

import pytest
import torch

from nnsight_nla import InjectionError


@pytest.fixture
def pair_of_residuals(model, nla):
    found = []
    for city in ("Paris", "Rome"):
        with model.trace(f"What a lovely day! People in {city} speak"):
            found.append(nla.layer(model).output[0, -1].save())
    return found


def test_both_ends_and_both_signs(nla, pair_of_residuals):
    a, b = pair_of_residuals
    ends = nla.explain_difference(a, b)
    assert ends.a.text == nla.explain(a).text
    assert ends.b.text == nla.explain(b).text
    assert ends.a_minus_b.text == nla.explain(a - b).text
    assert ends.b_minus_a.text == nla.explain(b - a).text
    torch.testing.assert_close(ends.b_minus_a.vectors, -ends.a_minus_b.vectors)
    assert (ends.a.origin.kind, ends.a_minus_b.origin.kind) == ("residual", "difference")
    # The other end is a control.
    assert ends.a.trust.others is not None
    assert ends.a.trust.grade == "strong"
    assert ends.a_minus_b.trust.grade == ends.b_minus_a.trust.grade == "none"
    table = ends.to_pandas()
    assert list(table["role"]) == ["a", "b", "a_minus_b", "b_minus_a"]
    assert list(table["grade"])[2:] == ["none", "none"]
    said = str(ends)
    assert said.index("About Paris") < said.index("About Rome")
    assert said.count("its vector is a difference") == 2
    assert ends._repr_html_().count("its vector is a difference") >= 2
    assert "of differences" in repr(ends)


def test_a_batch_in_a_trace(nla, model):
    with model.trace() as tracer:
        with tracer.invoke("People in Paris speak"):
            first = nla.layer(model).output[0, -2:].save()
        with tracer.invoke("People in Rome speak"):
            second = nla.layer(model).output[0, -2:].save()
    ends = nla.explain_difference(first, second)
    assert ends.a.shape == ends.b_minus_a.shape == (2,)
    with model.trace("People in Rome speak"):
        output = nla.layer(model).output
        inside = nla.explain_difference(output[0, -1], output[0, -2])
    assert inside.a.text == nla.explain(second[-1]).text


def test_two_that_do_not_fit_are_refused(nla, residuals):
    with pytest.raises(InjectionError, match=r"a has shape \[5, 128\], b has \[128\]"):
        nla.explain_difference(residuals[:5], residuals[0])
    with pytest.raises(InjectionError, match="Expected a floating-point tensor"):
        nla.explain_difference(residuals, "rome")
