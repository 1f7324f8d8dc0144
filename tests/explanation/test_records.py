"""The records of a capture: when a row has settled, and why it has no explanation."""

import pytest
import torch

from nnsight_nla import Sampling
from nnsight_nla.explanation.records import Capture, Reply


def reply(raw: str) -> Reply:
    return Reply(raw, raw, "tag", 5, 1.0, 2.0, 1.0)


def capture(samples: int = 1) -> Capture:
    return Capture(None, torch.ones(2, 4), 2, samples, Sampling(temperature=1.0))


GOOD = reply("<explanation>About Paris.</explanation>")


def test_a_row_has_settled_with_all_its_samples_or_an_error():
    made = capture(samples=2)
    assert not made.settled(0)
    made.replies[0, 0] = GOOD
    assert not made.settled(0)
    made.replies[0, 1] = GOOD
    assert made.settled(0)
    assert not made.settled(1)
    made.errors[1] = "is zero"
    assert made.settled(1)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (GOOD.raw, None),
        ("<explanation>About", "the reply has no closing </explanation> tag"),
        ("About Paris.</explanation>", "the reply has no <explanation> tag"),
        ("<explanation> </explanation>", "the explanation is empty"),
    ],
)
def test_a_malformed_reply_is_a_failure(raw, reason):
    made = capture()
    made.replies[0, 0] = reply(raw)
    assert made.failure(0) == reason


def test_an_error_is_a_failure_of_the_vector():
    made = capture()
    made.errors[0] = "is zero, it has no direction"
    assert made.failure(0) == "this vector is zero, it has no direction"


def test_sample_0_decides_and_the_others_do_not():
    made = capture(samples=2)
    made.replies[0, 0], made.replies[0, 1] = GOOD, reply("no tags")
    assert made.failure(0) is None


def test_every_capture_has_a_name_and_records_of_its_own():
    one, other = capture(), capture()
    assert one.uid != other.uid
    one.replies[0, 0] = GOOD
    one.errors[1] = "is zero"
    assert (other.replies, other.errors, other.trust) == ({}, {}, {})
