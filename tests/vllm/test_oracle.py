"""Questions about one or several vectors, and verbalizers of several, on vLLM."""

from dataclasses import replace

import pytest
import torch

from nnsight_nla import NLA, Checkpoint, Sampling, tiny

PATHS = tiny.paths()
QUESTIONS = ["Is the tone calm?", "What is the subject of the text?"]
SHORT = Sampling(max_new_tokens=16)
BOTH = (
    "From <concept>{injection_char}</concept> to <concept>{injection_char}</concept>.\n\n"
    "Please provide an explanation."
)


@pytest.fixture(scope="module")
def pair_of_oracles(on_vllm):
    """The tiny oracle, an adapter on the target, on both engines."""
    options = {"peft": str(PATHS["oracle"]), "sampling": SHORT, "dtype": "float32"}
    crowded = {"max_num_batched_tokens": 64, "max_num_seqs": 4}
    return on_vllm(PATHS["target"], vllm=crowded, **options), NLA(PATHS["target"], **options)


def test_questions_about_several_vectors_get_the_same_answers(pair_of_oracles, vectors):
    ours, theirs = pair_of_oracles
    # Rows of one, three and more vectors than there are requests at a time.
    asked = [vectors[n : n + count] for n, count in enumerate([1, 3, 9, 3] * 4)]
    questions = [QUESTIONS[n % 2] for n in range(len(asked))]
    found, expected = (each.ask(asked, questions) for each in (ours, theirs))
    assert found.raw == expected.raw
    assert len(set(expected.raw)) > 1
    for mine, other in zip(_replies(found), _replies(expected), strict=True):
        assert mine.norm_before == pytest.approx(other.norm_before, rel=1e-4)
        assert mine.injection_cosine == pytest.approx(1.0, abs=1e-4)
    assert found.receipt.prompt_hash == expected.receipt.prompt_hash
    # The order of the vectors counts, and vLLM's prefix cache knows.
    turned = ours.ask([each.flip(0) for each in asked], questions)
    assert turned.raw == theirs.ask([each.flip(0) for each in asked], questions).raw


def test_choices_have_the_same_probabilities(pair_of_oracles, vectors):
    ours, theirs = pair_of_oracles
    found, expected = (
        each.ask(list(vectors[:12, None]), QUESTIONS[0], choices=["Yes", "No"])
        for each in pair_of_oracles
    )
    assert found.text == expected.text
    for mine, other in zip(_replies(found), _replies(expected), strict=True):
        assert mine.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert mine.mass == pytest.approx(other.mass, abs=1e-5)
    trust = ours.ask(vectors[0], QUESTIONS[0]).trust
    assert trust == theirs.ask(vectors[0], QUESTIONS[0]).trust


def test_more_choices_than_one_request_may_compare(pair_of_oracles, vectors):
    tokenizer = pair_of_oracles[1].av.tokenizer
    words = {}
    for token in range(tokenizer.vocab_size):
        word = tokenizer.decode([token])
        if word.isalpha() and tokenizer.encode(word, add_special_tokens=False) == [token]:
            words[word] = None
    choices = list(words)[:140]
    assert len(choices) == 140
    found, expected = (
        each.ask(list(vectors[:3, None]), QUESTIONS[1], choices=choices) for each in pair_of_oracles
    )
    assert found.text == expected.text
    for mine, other in zip(_replies(found), _replies(expected), strict=True):
        assert mine.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_a_verbalizer_of_two_vectors_writes_each_at_its_marker(on_vllm, vectors):
    described = replace(Checkpoint.load(PATHS["av"]), template=BOTH, vectors=2, baseline=None)
    options = {"checkpoint": described, "sampling": SHORT, "dtype": "float32"}
    ours, theirs = on_vllm(**options), NLA(PATHS["av"], **options)
    pairs = torch.stack([vectors[:24], vectors[100:124]], dim=-2)
    found = ours.explain(pairs)
    assert found.raw == theirs.explain(pairs).raw
    assert len(set(found.raw)) > 5
    assert ours.explain(pairs.flip(-2)).raw == theirs.explain(pairs.flip(-2)).raw
    assert ours.explain_nothing().raw == theirs.explain_nothing().raw


def _replies(handle):
    return [handle.capture.replies[row, 0] for row in range(handle.capture.count)]
