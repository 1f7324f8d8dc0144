"""The records: what an intervention can reach, effects, and each different vector's text."""

from types import MappingProxyType

import torch

from nnsight_nla.experiments.records import Header, Outcome, Said, Texts, effect, reach

K = 2


class TestReach:
    def test_every_place_around_the_explained_one(self):
        grid = {
            (layer, position): reach(layer, position, K, 1)
            for layer in range(4)
            for position in range(3)
        }
        assert {place for place, word in grid.items() if word == "reaches"} == {
            (0, 0), (0, 1), (1, 0), (1, 1), (2, 1),
        }  # fmt: skip
        assert {place for place, word in grid.items() if word.startswith("downstream")} == {
            (3, 0), (3, 1), (3, 2),
        }  # fmt: skip
        assert grid[2, 0] == grid[2, 2] == "beside the explained position"
        assert grid[0, 2] == grid[1, 2] == "after the explained position"

    def test_everywhere_at_once(self):
        assert reach(K, None, K, 0) == "reaches"
        assert reach(K + 1, None, K, 0) == "downstream of the verbalized layer"


class TestEffect:
    RUNS = MappingProxyType({"clean": Outcome(4.0, "", {}), "corrupt": Outcome(-4.0, "", {})})

    def header(self, experiment):
        return Header(experiment, "", K, "", {}, (), False)

    def test_patching_is_normalised_and_the_others_are_not(self):
        assert effect(2.0, self.header("patch"), self.RUNS) == 0.75
        assert effect(2.0, self.header("ablate"), self.RUNS) == -2.0

    def test_there_is_none_without_two_finite_ends(self):
        runs = {**self.RUNS, "clean": Outcome(None, "", {})}
        same = {**self.RUNS, "clean": self.RUNS["corrupt"]}
        assert effect(None, self.header("patch"), self.RUNS) is None
        assert effect(2.0, self.header("patch"), runs) is None
        assert effect(2.0, self.header("patch"), same) is None
        assert effect(2.0, self.header("steer"), runs) is None


class TestTexts:
    VECTOR = torch.tensor([1.0, 2.0])

    def test_a_vector_that_no_verbalizer_has_seen_says_what_to_type(self):
        said = Texts([self.VECTOR], None).of(self.VECTOR)
        assert said.text is None
        assert said.error == "was not explained; give the NLA: from_parquet(path, nla=nla)"

    def test_what_was_learned_is_not_explained_again(self):
        known = Texts([], None)
        known.learn(self.VECTOR, Said("a text"))
        known.learn(self.VECTOR + 1, Said(error="is zero"))
        known.learn(self.VECTOR + 2, Said())
        texts = Texts([self.VECTOR, self.VECTOR + 1], None, known)
        assert texts.of(self.VECTOR).text == "a text"
        assert texts.of(self.VECTOR + 1).error == "is zero"
        assert len(texts.settled()) == 2
        assert texts.of(None) == Said()
