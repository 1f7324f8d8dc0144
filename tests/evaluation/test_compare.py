"""Comparing explanations: cosines, distances between texts, and shapes."""

from types import MappingProxyType

import pytest
import torch

from nnsight_nla import NLA, VerbalizationError, tiny
from nnsight_nla.errors import TextError
from nnsight_nla.evaluation.compare import compare, text_distances


class TestDistances:
    VECTORS = MappingProxyType({"east": [1.0, 0.0], "north": [0.0, 2.0], "both": [3.0, 3.0]})

    def reconstruct(self, texts):
        self.asked.append(list(texts))
        if any(text not in self.VECTORS for text in texts):
            raise TextError("a text is strange")
        return torch.tensor([self.VECTORS[text] for text in texts])

    @pytest.fixture(autouse=True)
    def count(self):
        self.asked = []

    def test_by_hand_and_each_text_once(self):
        pairs = [("east", "north"), ("east", "both"), ("both", "both"), (None, "east")]
        found = text_distances(pairs, self.reconstruct)
        assert found[0] == (pytest.approx(1.0, abs=1e-6), None)
        assert found[1] == (pytest.approx(1 - 0.5**0.5, abs=1e-6), None)
        assert found[2:] == [(0.0, None), (None, None)]
        assert self.asked == [["east", "north", "both"]]

    def test_one_bad_text_costs_its_own_row_only(self):
        found = text_distances([("east", "up"), ("east", "north")], self.reconstruct)
        assert found[0][0] is None
        assert "no distance between the texts: a text is strange" in found[0][1]
        assert found[1] == (pytest.approx(1.0, abs=1e-6), None)

    def test_without_a_reconstructor(self):
        assert text_distances([("east", "north")], None) == [(None, None)]

    def test_nothing_to_compare(self):
        assert text_distances([(None, "east")], self.reconstruct) == [(None, None)]
        assert self.asked == []


@pytest.fixture
def thoughts(model, nla):
    prompts = [
        "What a lovely day! People in Rome speak",
        "What a lovely day! People in Paris speak",
    ]
    with model.trace(prompts):
        found = nla.explain(nla.layer(model).output[:, -1])
    return found


class TestHandles:
    def test_two_scalar_handles(self, nla, thoughts):
        before, after = thoughts
        found = nla.compare(before, after)
        assert found.shape == ()
        assert (found.before, found.after) == (before.text, after.text)
        assert "Rome" in found.removed
        assert "Paris" in found.added
        a, b = thoughts.vectors
        assert found.cosine == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), abs=1e-5)
        a, b = nla.reconstruct([before.text, after.text])
        expected = 1 - float(torch.cosine_similarity(a, b, dim=0))
        assert found.text_distance == pytest.approx(expected, abs=1e-5)
        assert found.effect is None
        assert found.error is None

    def test_one_for_all_and_the_shape(self, nla, thoughts):
        found = nla.compare(thoughts[0], thoughts)
        assert found.shape == (2,)
        assert found.change[0] == 0.0
        assert found.change[1] > 0
        assert found.text_distance[0] == 0.0
        assert found.cosine[0] == pytest.approx(1.0, abs=1e-6)
        frame = found.to_pandas()
        assert frame["change"].tolist() == found.change
        assert len(found) == 2
        page = found._repr_html_()
        assert "Rome" in page
        assert "<ins" in page

    def test_a_failed_row_has_its_reason_and_the_others_their_numbers(self, nla, thoughts):
        vectors = torch.stack([thoughts.vectors[0], torch.zeros(128)])
        found = nla.compare(thoughts, nla.explain(vectors))
        assert found.error[0] is None
        assert found.error[1].startswith("after: this vector is zero")
        assert found.cosine[1] is found.change[1] is found.text_distance[1] is None
        assert found.cosine[0] == pytest.approx(1.0, abs=1e-6)
        assert found.to_pandas()["cosine"].isna().tolist() == [False, True]
        assert "this vector is zero" in found._repr_html_()

    def test_without_a_reconstructor_the_rest_is_there(self, thoughts):
        alone = NLA(tiny.paths()["av"], dtype=torch.float32)
        found = alone.compare(*(alone.explain(each) for each in thoughts.vectors))
        assert found.text_distance is None
        assert found.added

    def test_it_prints_as_a_line_or_a_line_for_each(self, nla, thoughts):
        one = nla.compare(*thoughts)
        assert repr(one).startswith("<Comparison ")
        assert "% of the words differ, cosine 0." in repr(one)
        assert "shape" not in repr(one)
        assert str(one).startswith(repr(one)[12:-1])
        figures, _, diff = str(one).partition("\n\n")
        assert figures == repr(one)[12:-1]
        assert diff == one.rows[0].to_text()
        assert "[-Rome-] {+Paris+}" in diff
        both = nla.compare(thoughts[0], thoughts)
        assert repr(both) == "<Comparison shape=(2,), 1 of 2 texts differ>"
        first, second = str(both).splitlines()
        assert first == "0: 0% of the words differ, cosine 1.00, text distance 0.00"
        assert second.startswith("1: ")
        assert "Rome" in second.split(" \u2192 ")[0]
        assert "Paris" in second.split(" \u2192 ")[1]
        bad = nla.compare(thoughts[0], nla.explain(torch.zeros(128)))
        assert str(bad) == repr(bad)[12:-1]
        assert "after: this vector is zero" in str(bad)
        many = nla.explain(thoughts.vectors[:1].expand(30, -1))
        lines = str(nla.compare(thoughts[1], many)).splitlines()
        assert (len(lines), lines[-1]) == (21, "... and 10 more; .to_pandas() has all")

    def test_several_dimensions(self, nla, thoughts):
        grid = thoughts.vectors.repeat(2, 1).reshape(2, 2, 128)
        found = nla.compare(nla.explain(grid), nla.explain(grid.flip(1)))
        assert found.shape == (2, 2)
        assert "Paris" in found.added[1][0]
        assert "Rome" in found.added[1][1]

    def test_what_cannot_be_compared(self, nla, thoughts):
        with pytest.raises(VerbalizationError, match=r"expected a handle, which nla.explain"):
            nla.compare(thoughts, "a text")
        with pytest.raises(VerbalizationError, match=r"before has shape \(2,\) and after \(1,\)"):
            nla.compare(thoughts, thoughts[:1])
        with pytest.raises(AttributeError):
            _ = nla.compare(thoughts, thoughts).colour

    def test_compare_takes_any_reconstructor(self, thoughts):
        seen = []

        def reconstruct(texts):
            seen.append(texts)
            return torch.eye(2)

        assert compare(thoughts[0], thoughts[1], reconstruct).text_distance == pytest.approx(1.0)
        assert len(seen) == 1
