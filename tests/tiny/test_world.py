"""The world: its truth at every word, its explanations and its held-out pairs."""

import random

import pytest

from nnsight_nla.tiny.documents import Truth, sample
from nnsight_nla.tiny.explanations import Slots, explain, parse
from nnsight_nla.tiny.facts import NEUTRAL, SUBJECTS, TONES, held_out_pairs, training_pairs


def documents(number=400, **options):
    rng = random.Random(3)
    return [sample(rng, **options) for _ in range(number)]


def test_there_are_eighty_subjects_whose_facts_are_single_words():
    assert len(SUBJECTS) == 80
    for subject in SUBJECTS.values():
        assert all(answer.isalpha() for answer in (subject.name, *subject.facts.values()))
    assert SUBJECTS["Paris"].facts["capital"] == "France"
    assert SUBJECTS["France"].facts["capital"] == "Paris"


def test_held_out_pairs_are_disjoint_from_training_and_cover_the_rest():
    held_out, training = held_out_pairs(), set(training_pairs())
    assert len(held_out) == 48
    assert held_out.isdisjoint(training)
    assert len(held_out) + len(training) == 80 * (len(TONES) + 1)
    assert NEUTRAL not in {tone for _, tone in held_out}


def test_the_subject_is_known_from_its_first_mention_on():
    for document in documents():
        named = False
        for word in document.words:
            named = named or word.role == "subject"
            assert (word.truth.subject is not None) == named


def test_a_question_names_the_subject_before_the_text():
    for document in documents(100, chat=1.0):
        assert document.question.startswith("Tell me about")
        assert document.words[0].truth.subject in document.question


def test_the_tone_is_known_from_its_first_adjective_on():
    tone_of = {adjective: tone for tone, words in TONES.items() for adjective in words}
    for document in documents():
        known = NEUTRAL
        for word in document.words:
            known = tone_of.get(word.text, known)
            assert word.truth.tone == known


def test_an_answer_is_the_fact_being_stated():
    for document in documents():
        for word in document.words:
            if word.role == "answer":
                assert SUBJECTS[word.truth.subject].facts[word.truth.stage] == word.text


def test_the_stage_is_unknown_until_one_fact_is_left():
    rng = random.Random(0)
    found = {}
    while len(found) < 2:
        for document in (sample(rng, "Paris", NEUTRAL) for _ in range(50)):
            words = [word.text for word in document.words]
            for start in ("People in Paris speak", "People in Paris eat"):
                if words[:4] == start.split():
                    found[start] = [word.truth.stage for word in document.words[:4]]
    assert found["People in Paris speak"] == ["unknown"] * 3 + ["language"]
    assert found["People in Paris eat"] == ["unknown"] * 3 + ["food"]


def test_documents_are_what_their_seed_says():
    assert [d.text for d in documents(20)] == [d.text for d in documents(20)]


def test_explanations_parse_back_into_their_slots():
    for document in documents():
        for word, following in zip(document.words, document.words[1:], strict=False):
            truth, slots = word.truth, parse(explain(word.truth, word.text, following.text))
            assert slots.subject == (truth.subject or "none")
            assert slots.tone == truth.tone
            assert None not in vars(slots).values()


def test_an_explanation_by_hand():
    text = explain(Truth("wolf", "calm", "currency"), ",", "which")
    assert text.splitlines() == [
        "About the wolf, a kind of mammal; calm tone.",
        "Stating the money.",
        "After: comma. Next: which.",
    ]
    assert parse(text) == Slots("wolf", "mammal", "calm", "Stating the money", "comma", "which")


@pytest.mark.parametrize("text", ["", "About Paris.", "About Paris, the capital of France; calm"])
def test_another_text_has_no_slots(text):
    assert parse(text) == Slots()
