"""Metrics: hand-computed numbers, and answers that are not one token."""

import math

import pytest
import torch

from nnsight_nla import NLAError
from nnsight_nla.experiments import kl, logit_difference, probability
from nnsight_nla.experiments.edits import answers
from nnsight_nla.experiments.metrics import bind, token_id


class Words:
    """A tokenizer of whole words; a word it lacks is spelled out."""

    vocabulary = (" a", " b", "c", "n", "w", "x")

    def __len__(self):
        return len(self.vocabulary)

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        if text in self.vocabulary:
            return [self.vocabulary.index(text)]
        return [self.vocabulary.index(sign) for sign in text if sign in self.vocabulary]

    def decode(self, ids):
        return "".join(self.vocabulary[each] for each in ids)


LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.5, 0.5], [0.0, 3.0, 0.0, 0.0, 0.0, 0.0]])


def measured(metric, logits=LOGITS):
    bound = bind(metric, Words())
    columns = None if bound.columns is None else list(bound.columns)
    return bound(answers(logits, columns))


def test_logit_difference_by_hand():
    assert measured(logit_difference(" a", " b")) == [1.0, -3.0]
    assert measured(logit_difference(2, " b")) == [-1.0, -3.0]


def test_probability_by_hand():
    total = sum(math.exp(each) for each in LOGITS[0].tolist())
    expected = [math.exp(2) / total, 1 / (5 + math.exp(3))]
    assert measured(probability(" a")) == pytest.approx(expected, rel=1e-6)


def test_only_the_answers_columns_leave_the_model():
    bound = bind(logit_difference(" a", "c"), Words())
    kept = answers(LOGITS, list(bound.columns))
    assert kept.shape == (2, 3)
    assert torch.equal(kept[:, :2], LOGITS[:, [0, 2]])


def test_divergence_by_hand_and_of_a_distribution_from_itself():
    half, quarter = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0.25, 0.75]).log()
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert bind(kl(quarter), Words())(half) == [pytest.approx(expected, rel=1e-6)]
    assert bind(kl(LOGITS[0]), Words())(LOGITS[:1]) == [0.0]


def test_divergence_from_a_distribution_with_impossible_tokens_is_finite():
    reference = torch.tensor([0.0, -torch.inf])
    assert bind(kl(reference), Words())(torch.tensor([[0.0, 0.0]])) == [
        pytest.approx(math.log(2), rel=1e-6)
    ]
    both = torch.tensor([[0.0, -torch.inf]])
    assert bind(kl(reference), Words())(both) == [0.0]


def test_a_number_that_is_not_finite_is_none_and_never_a_nan():
    assert measured(lambda logits: logits[:, 0] / 0) == [None, None]
    impossible = torch.tensor([[0.0, -torch.inf, 0, 0, 0, 0]])
    assert measured(logit_difference(" a", " b"), impossible) == [None]


def test_any_function_of_the_logits():
    def entropy(logits):
        return torch.distributions.Categorical(logits=logits).entropy()

    bound = bind(entropy, Words())
    assert bound.name == "entropy"
    assert bound.columns is None
    expected = torch.distributions.Categorical(logits=LOGITS).entropy().tolist()
    assert measured(entropy) == pytest.approx(expected)


def test_a_function_that_does_not_return_a_number_per_row():
    with pytest.raises(NLAError, match=r"returned shape \[2, 6\].*one number per row, \[2\]"):
        measured(lambda logits: logits)
    with pytest.raises(NLAError, match=r"returned str; expected one number per row, \[2\]"):
        measured(lambda logits: "two")


def test_the_users_own_error_is_theirs():
    def broken(logits):
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        measured(broken)


def test_an_answer_of_several_tokens_is_refused_with_its_pieces():
    with pytest.raises(NLAError, match=r"' new' is 2 tokens.*\['n', 'w'\]") as caught:
        bind(probability(" new"), Words())
    assert "pass a token's id" in str(caught.value)


def test_the_form_with_or_without_the_space_is_offered_where_it_is_a_token():
    with pytest.raises(NLAError, match=r"'a' is 0 tokens.*' a' is one"):
        bind(logit_difference("a", " b"), Words())
    with pytest.raises(NLAError, match=r"' cn' is 2 tokens.*\['c', 'n'\]") as caught:
        token_id(" cn", Words())
    assert "is one." not in str(caught.value), "'cn' is not a token either"


def test_the_real_tokenizer_of_the_pair(model):
    with pytest.raises(NLAError, match=r"'French' is 3 tokens.*\['F', 'ren', 'ch'\].*' French'"):
        bind(logit_difference("French", " Italian"), model.tokenizer)
    assert model.tokenizer.decode([token_id(" French", model.tokenizer)]) == " French"


@pytest.mark.parametrize("answer", [-1, 6, True, None, 1.0, ["a"]])
def test_values_that_are_not_an_answer(answer):
    with pytest.raises(NLAError, match=r"0 to 5|not an answer"):
        bind(probability(answer), Words())


def test_two_answers_that_are_one():
    with pytest.raises(NLAError, match="always 0"):
        bind(logit_difference(" a", 0), Words())


@pytest.mark.parametrize("metric", [None, "kl", 3])
def test_values_that_are_not_a_metric(metric):
    with pytest.raises(NLAError, match=r"expected logit_difference\(a, b\)"):
        bind(metric, Words())


@pytest.mark.parametrize("reference", ["before", torch.zeros(2, 3), None])
def test_values_that_are_not_a_reference(reference):
    with pytest.raises(NLAError, match=r'expected "clean", "corrupt", or'):
        kl(reference)


def test_a_reference_of_another_vocabulary_or_run():
    with pytest.raises(NLAError, match="3 logits, the model 6"):
        bind(kl(torch.zeros(3)), Words())(LOGITS)
    with pytest.raises(NLAError, match=r"this experiment has the runs \[\]"):
        bind(kl("corrupt"), Words())(LOGITS)
