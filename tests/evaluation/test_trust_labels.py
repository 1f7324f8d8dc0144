"""Trust labels by hand: a made-up reconstructor, a made-up queue, and vectors of two numbers."""

import math
import threading

import pytest
import torch

from nnsight_nla import Baseline, Sampling
from nnsight_nla.core.calibration import Calibration
from nnsight_nla.errors import HostError, TextError
from nnsight_nla.evaluation.trust_labels import RANDOM_CONTROLS, TrustLabeller
from nnsight_nla.explanation.records import Capture, Reply

ROOT = math.sqrt(0.5)
HALF = Baseline(0.5, "by hand")


class Reconstructor:
    """Text ``"1 0"`` is the vector (1, 0); a text with ``"long"`` in it is too long."""

    d_model = 2

    def __init__(self):
        self.calls: list[list[str]] = []
        self.fail: Exception | None = None

    def reconstruct(self, texts):
        self.calls.append(texts)
        if self.fail is not None:
            raise self.fail
        for text in texts:
            if "long" in text:
                raise TextError(f"{text!r} is too long.")
        rows = [[float(part) for part in text.split()] for text in texts]
        return torch.tensor(rows).reshape(-1, 2)


class Queue:
    """Says one text for no vector, and its list of texts for random directions."""

    def __init__(self, null="0 1", random=("1 1", "1 -1")):
        self.null, self.random, self.runs = null, random, 0

    def add(self, handle):
        pass

    def resolve_only(self, handles):
        self.runs += 1
        for handle in handles:
            capture = handle.capture
            for row in handle.rows:
                text = self.null if capture.null else self.random[row % len(self.random)]
                capture.replies[row, 0] = reply(text)


def reply(text: str, raw: str | None = None) -> Reply:
    raw = f"<explanation>{text}</explanation>" if raw is None else raw
    return Reply(raw, text, "tag", 5, 1.0, 2.0, 1.0)


def capture(vectors, texts, samples: int = 1, **options) -> Capture:
    """`texts` row by row; ``None`` has no reply yet."""
    made = Capture(Queue(), torch.tensor(vectors), len(vectors), samples, Sampling(), **options)
    for i, text in enumerate(texts):
        if text is not None:
            made.replies[divmod(i, samples)] = text if isinstance(text, Reply) else reply(text)
    return made


def labeller(queue: Queue | None = None, baseline: Baseline | None = HALF) -> TrustLabeller:
    return TrustLabeller(Reconstructor(), queue or Queue(), Sampling(), baseline)


def measured(made: Capture, queue: Queue | None = None, **options):
    rows = [row for row in range(made.count) if made.settled(row)]
    return labeller(queue, **options).measure(made, rows)


def test_by_hand():
    labels = measured(capture([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], ["4 0", "1 1", "-1 0"]))
    first = labels[0]
    assert first.cosine == pytest.approx(1)
    assert first.others == pytest.approx(-0.5)  # 0 with (0, 3), -1 with (-1, 0).
    assert first.null == pytest.approx(0, abs=1e-6)
    assert first.random == pytest.approx(ROOT)  # "1 1" and "1 -1", four times each.
    assert first.margin == pytest.approx(1)
    assert first.fve == pytest.approx(1)
    assert (first.grade, first.agreement, first.reason) == ("strong", None, None)
    second = labels[1]
    assert second.cosine == pytest.approx(ROOT)
    assert second.others == pytest.approx(0, abs=1e-6)
    assert second.null == pytest.approx(1)
    assert second.random == pytest.approx(0, abs=1e-6)
    assert second.fve == pytest.approx(1 - 2 * (1 - ROOT) / 0.5, abs=1e-5)
    assert second.margin < -1e4  # The null control is perfect; nothing is left above it.
    assert second.grade == "weak"
    assert labels[2].random == pytest.approx(-ROOT)
    assert labels[2].margin == pytest.approx(1)


def test_the_mean_cosine_with_the_others_is_not_the_cosine_with_their_mean():
    # cos with (1, 0) is 1 and with (0, 1) is 0; the cosine with (1, 1) would be 0.71.
    labels = measured(capture([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], ["1 0", "1 0", "0 1"]))
    assert labels[0].others == pytest.approx(0.5)


def test_without_a_baseline_there_is_no_fve():
    label = measured(capture([[1.0, 0.0]], ["1 0"]), baseline=None)[0]
    assert (label.fve, label.baseline) == (None, None)
    assert label.cosine == pytest.approx(1)


def test_one_vector_has_no_others():
    assert measured(capture([[1.0, 0.0]], ["1 0"]))[0].others is None


@pytest.mark.parametrize("bad", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 0.0]])
def test_an_unusable_vector_has_no_label_and_is_nobodys_control(bad):
    made = capture([[1.0, 0.0], bad, [0.0, 1.0]], ["1 0", None, "0 1"])
    made.errors[1] = "is unusable"
    labels = measured(made)
    assert (labels[1].grade, labels[1].cosine) == ("none", None)
    assert labels[1].reason == "this vector is unusable"
    assert labels[0].others == pytest.approx(0, abs=1e-6)
    assert labels[0].grade == "strong"


def test_an_unusable_vector_that_has_not_settled_is_nobodys_control_either():
    labels = measured(capture([[1.0, 0.0], [math.nan, 1.0], [0.0, 1.0]], ["1 0", None, "0 1"]))
    assert set(labels) == {0, 2}
    assert labels[0].others == pytest.approx(0, abs=1e-6)


def test_a_vector_that_has_not_settled_is_a_control():
    labels = measured(capture([[1.0, 0.0], [1.0, 1.0]], ["1 0", None]))
    assert set(labels) == {0}
    assert labels[0].others == pytest.approx(ROOT)


def test_samples_that_disagree_lower_the_grade():
    one = capture([[1.0, 0.0]], ["1 0", "0 1", "1 0"], samples=3)
    label = measured(one)[0]
    assert label.cosine == pytest.approx(1)  # Of sample 0.
    assert label.agreement == pytest.approx(1 / 3)  # The pairs have the cosines 0, 1 and 0.
    assert label.margin == pytest.approx(1)
    assert label.grade == "weak"
    same = capture([[1.0, 0.0]], ["1 0", "2 0"], samples=2)
    assert measured(same)[0].agreement == pytest.approx(1)


def test_a_malformed_reply_has_no_label_and_is_not_reconstructed():
    cut = reply("1 0", raw="<explanation>1 0")
    made = capture([[1.0, 0.0], [0.0, 1.0]], [cut, "0 1"])
    tool = labeller()
    labels = tool.measure(made, [0, 1])
    assert labels[0].reason == "the reply has no closing </explanation> tag"
    assert labels[0].line == "reconstruction: none (the reply has no closing </explanation> tag)"
    assert labels[1].grade == "weak"  # Null says "0 1" too.
    assert tool.reconstructor.calls[-1] == ["0 1"]


def test_one_text_that_cannot_be_reconstructed_leaves_the_others():
    labels = measured(capture([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], ["1 0", "long", "1 1"]))
    assert labels[1].reason == "'long' is too long."
    assert [labels[row].grade for row in range(3)] == ["strong", "none", "strong"]
    assert labels[2].others == pytest.approx(ROOT)


def test_a_later_sample_that_cannot_be_reconstructed_only_lowers_the_count():
    label = measured(capture([[1.0, 0.0]], ["1 0", "long", "1 1"], samples=3))[0]
    assert label.cosine == pytest.approx(1)
    assert label.agreement == pytest.approx(ROOT)
    first = measured(capture([[1.0, 0.0]], ["long", "1 0"], samples=2))[0]
    assert (first.grade, first.reason) == ("none", "'long' is too long.")


def test_empty_controls_are_left_out():
    made = capture([[1.0, 0.0], [0.0, 1.0]], ["1 0", "0 1"])
    label = measured(made, Queue(null=" "))[0]
    assert label.null is None
    assert label.random == pytest.approx(ROOT)
    label = measured(made, Queue(random=("", "1 0")))[0]
    assert label.random == pytest.approx(1)
    label = measured(made, Queue(null="", random=("",)))[0]
    assert (label.null, label.random) == (None, None)
    assert label.margin == pytest.approx(1)


def test_the_controls_are_made_once_also_by_two_threads():
    queue = Queue()
    tool = labeller(queue)
    made = [capture([[1.0, 0.0], [0.0, 1.0]], ["1 0", "0 1"]) for _ in range(4)]
    found: dict[int, object] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: tool.measure(made[i], [0, 1])}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queue.runs == 1
    assert all(found[i] == found[0] for i in range(4))
    assert len(tool.reconstructor.calls[0]) == 1 + RANDOM_CONTROLS


def test_a_failure_is_raised_and_the_next_call_measures():
    tool = labeller()
    made = capture([[1.0, 0.0]], ["1 0"])
    tool.reconstructor.fail = HostError("the host is away")
    with pytest.raises(HostError, match="the host is away"):
        tool.measure(made, [0])
    tool.reconstructor.fail = None
    assert tool.measure(made, [0])[0].grade == "strong"


def test_fake_tensors_have_no_labels():
    tool = labeller()
    assert tool.measure(Capture(Queue(), None, 2, 1, Sampling()), [0, 1]) == {}
    assert tool.reconstructor.calls == []


def test_a_label_carries_the_warnings_of_its_row():
    noisy = Calibration("texts", 100, noisy_positions=4)
    made = capture(
        [[1.0, 0.0], [0.0, 1.0]], ["1 0", "0 1"], positions=[0, 50], width=2, calibration=noisy
    )
    labels = measured(made)
    assert labels[0].warnings == (
        "position 0: explanations of the first 4 positions are worse than later ones, as measured "
        "for this verbalizer",
    )
    assert labels[1].warnings == ()
    assert "1 warning" in labels[0].line
