"""Trust labels: what they are measured on, where they show, what they cost."""

import json
import pickle
import threading

import pytest
import torch

from nnsight_nla import NLA, CheckpointError, Sampling, tiny
from nnsight_nla.bulk.records import add_scores
from nnsight_nla.core.trust import grade
from nnsight_nla.errors import HostError, ReconstructionError, TextError
from nnsight_nla.evaluation import trust_labels


def test_it_is_measured_as_it_says(nla, residuals):
    thought = nla.explain(residuals[-4:])
    label = thought.trust[1]
    near = torch.nn.functional.cosine_similarity
    back = nla.reconstruct(thought.text[1])
    own, rest = residuals[-3], residuals[[-4, -2, -1]]
    null = nla.reconstruct(nla.explain_nothing().text)
    chance = nla.reconstruct(nla.controls(trust_labels.RANDOM_CONTROLS).random.text)
    assert label.cosine == pytest.approx(near(back, own, dim=0).item(), abs=1e-5)
    assert label.fve == pytest.approx(1 - 2 * (1 - label.cosine) / nla.baseline.value, abs=1e-5)
    assert label.others == pytest.approx(near(back[None], rest).mean().item(), abs=1e-5)
    assert label.null == pytest.approx(near(null, own, dim=0).item(), abs=1e-5)
    assert label.random == pytest.approx(near(chance, own[None]).mean().item(), abs=1e-5)
    best = max(0, label.others, label.null, label.random)
    assert label.margin == pytest.approx((label.cosine - best) / (1 - best), abs=1e-5)
    assert label.grade == grade(label.margin)
    assert label.agreement is None
    assert nla.trust(thought)[1] == label


def test_a_part_has_its_parents_label_and_one_vector_has_no_others(nla, residuals):
    thought = nla.explain(residuals[-4:])
    part = thought[1].trust
    assert part == thought.trust[1]
    assert part.others is not None
    assert nla.explain(residuals[-1]).trust.others is None
    assert nla.explain(residuals[-4:].reshape(2, 2, 128)).trust[1][1].grade in ("strong", "partial")


def test_samples_that_disagree_lower_it(nla, residuals):
    hot = Sampling(temperature=4.0, max_new_tokens=40)
    thought = nla.explain(residuals[-1], samples=4, sampling=hot)
    back = nla.reconstruct([text for text in thought.samples if text.strip()])
    unit = torch.nn.functional.normalize(back, dim=-1)
    pairs = (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
    label = thought.trust
    if label.cosine is not None:
        assert label.agreement == pytest.approx(pairs.mean().item(), abs=1e-5)
        assert label.agreement < 0.9
    calm = nla.explain(residuals[-1], samples=3, sampling=Sampling(temperature=0.01))
    assert calm.trust.agreement == pytest.approx(1, abs=1e-4)


def test_it_is_shown_in_one_line_and_whole_in_to_dict(nla, residuals):
    thought = nla.explain(residuals[-2:])
    label = thought[0].trust
    assert f"[{label.line}]" in str(thought[0])
    assert label.line in thought._repr_html_()
    assert thought.to_dict()["explanations"][0]["label"] == label.to_dict()
    json.dumps(thought.to_dict(), allow_nan=False)
    assert thought.text[0] == thought[0].text
    assert "trust" not in thought[0].text


def test_bad_rows_have_a_label_that_says_so(nla, residuals):
    thought = nla.explain(torch.stack([residuals[-1], torch.zeros(128)]))
    bad = thought.trust[1]
    assert (bad.grade, bad.cosine) == ("none", None)
    assert bad.line == "reconstruction: none (this vector is zero, it has no direction)"
    # The unusable vector is nobody's control.
    assert thought.trust[0].others is None
    cut = nla.explain(residuals[-1], sampling=Sampling(max_new_tokens=14))
    assert cut.trust.grade == "none"
    assert "no closing" in cut.trust.reason


def test_one_text_that_cannot_be_read_does_not_take_the_others_with_it(nla, residuals, monkeypatch):
    thought = nla.explain(residuals[-3:])
    nla.resolve(thought)
    monkeypatch.setattr(nla._reconstructor, "_context", 60)
    reply = thought._capture.replies[1, 0]
    long = type(reply)(**{**vars(reply), "text": "word " * 100})
    thought._capture.replies[1, 0] = long
    grades = [label.grade for label in thought.trust]
    assert grades[1] == "none"
    assert "tokens with its template" in thought.trust[1].reason
    assert "none" not in (grades[0], grades[2])


def test_without_a_reconstructor_there_is_none(residuals):
    nla = NLA(tiny.paths()["av"], dtype=torch.float32)
    thought = nla.explain(residuals[-1])
    assert thought.trust is None
    assert str(thought) == thought.text
    assert thought.to_dict()["explanations"][0]["trust"] is None
    with pytest.raises(CheckpointError, match="no reconstructor"):
        nla.trust(thought)


def test_a_display_shows_the_text_also_where_the_label_cannot_be_measured(
    nla, residuals, monkeypatch
):
    thought = nla.explain(residuals[-1])

    def away(texts, batch_size=64):
        raise HostError("the host is away")

    monkeypatch.setattr(nla._reconstructor, "reconstruct", away)
    monkeypatch.setattr(
        nla.labeller, "_reference", trust_labels.Reference(None, torch.zeros(0, 128))
    )
    assert thought.text in str(thought)
    assert "[reconstruction: none (not measured: the host is away)]" in str(thought)
    with pytest.raises(HostError):
        _ = thought.trust
    monkeypatch.undo()
    assert thought.trust.grade != "none"


def test_it_is_measured_once_and_travels(nla, residuals, monkeypatch):
    thought = nla.explain(residuals[-2:])
    labels = thought.trust
    monkeypatch.setattr(nla._reconstructor, "reconstruct", None)
    assert thought.trust == labels
    assert pickle.loads(pickle.dumps(thought)).trust == labels


def test_the_shipped_reliability_falls_from_grade_to_grade():
    table = tiny.figures()["reliability"]
    for share in ("subject", "slots", "all"):
        assert table["strong"][share] > table["partial"][share] > table["weak"][share]
    assert all(table[name]["rows"] > 100 for name in ("strong", "partial", "weak"))


class TestARaceIsNoLabel:
    """Only what is about the text is stored; a busy or broken reconstructor is an error."""

    def test_a_trace_on_the_reconstructor_in_another_thread(self, nla, residuals):
        thought = nla.explain(residuals[-2:])
        nla.resolve(thought)
        inside, read = threading.Event(), threading.Event()

        def trace():
            with nla.ar.trace("a text"):
                inside.set()
                read.wait(60)

        nla.labeller.measure(nla.explain(residuals[:1]).capture, [])  # The controls are known.
        other = threading.Thread(target=trace)
        other.start()
        try:
            assert inside.wait(60)
            with pytest.raises(ReconstructionError, match="A trace is running on the reconstr"):
                _ = thought.trust
            assert thought.capture.trust == {}
            assert thought.to_dict()["explanations"][0]["grade"] == "none"
        finally:
            read.set()
            other.join()
        assert [label.reason for label in thought.trust] == [None, None]
        assert thought.trust[-1].grade == "strong"

    @pytest.mark.parametrize(
        "error", [ReconstructionError("busy"), HostError("away"), CheckpointError("no memory")]
    )
    def test_what_is_not_about_the_text_is_raised_everywhere(
        self, nla, model, residuals, monkeypatch, error
    ):
        thought, other = nla.explain(residuals[-1]), nla.explain(residuals[-2])
        nla.resolve()
        _ = nla.explain(residuals[-3]).trust

        def failing(texts, batch_size=64):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(nla._reconstructor, "reconstruct", failing)
            for attempt in (
                lambda: thought.trust,
                lambda: nla.score(thought),
                lambda: nla.compare(thought, other),
                lambda: nla.read(model, "People in Paris speak", positions=-1),
                lambda: add_scores(
                    [{"text": thought.text, "vector": residuals[-1].numpy()}], failing
                ),
            ):
                with pytest.raises(type(error), match=str(error)):
                    attempt()
        assert thought.trust.grade != "none"

    def test_what_is_about_the_text_is_stored(self, nla, residuals, monkeypatch):
        thought = nla.explain(residuals[-2:])
        real, long = nla._reconstructor.reconstruct, thought.text[1]

        def choosy(texts, batch_size=64):
            if long in texts:
                raise TextError("text 0 is 900 tokens")
            return real(texts, batch_size)

        monkeypatch.setattr(nla._reconstructor, "reconstruct", choosy)
        assert [label.reason for label in thought.trust] == [None, "text 0 is 900 tokens"]
