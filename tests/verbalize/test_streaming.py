"""Texts that are followed while they are generated, and stopped."""

from itertools import pairwise

import pytest
import torch

from nnsight_nla import NLA, Sampling, VerbalizationError, tiny
from nnsight_nla.verbalize.streaming import partial_text

WARM = Sampling(temperature=1.0, seed=4)


def followed(nla, handle, stop=()):
    """What `on_text` was called with: (row, sample) to the list of its (text, finished)."""
    seen: dict[tuple[int, int], list[tuple[str, bool]]] = {}

    def on_text(so_far):
        assert so_far.capture is handle.capture
        seen.setdefault((so_far.row, so_far.sample), []).append((so_far.text, so_far.finished))
        return "stop" if so_far.row in stop and len(seen[so_far.row, so_far.sample]) == 3 else None

    nla.resolve(handle, on_text=on_text)
    return seen


def test_texts_grow_token_by_token_to_the_unstreamed_ones(nla, residuals):
    expected = nla.explain(residuals[:5]).text
    handle = nla.explain(residuals[:5])
    seen = followed(nla, handle)
    assert handle.text == expected
    assert sorted(row for row, _ in seen) == list(range(5))
    for (row, sample), steps in seen.items():
        texts = [text for text, _ in steps]
        assert [done for _, done in steps] == [False] * (len(steps) - 1) + [True]
        assert texts[-1] == expected[row]
        assert all(later.startswith(text) for text, later in pairwise(texts))
        assert not any("<" in text for text in texts)
        # One call for each token but the last, which finishes the text.
        assert len(steps) == handle.capture.replies[row, sample].new_tokens


def test_samples_stream_each_their_own_text(nla, residuals):
    expected = nla.explain(residuals[:2], samples=3, sampling=WARM).samples
    handle = nla.explain(residuals[:2], samples=3, sampling=WARM)
    seen = followed(nla, handle)
    assert {key: steps[-1][0] for key, steps in seen.items()} == {
        (row, k): expected[row][k] for row in range(2) for k in range(3)
    }


def test_a_stopped_row_stays_pending_and_the_others_keep_their_texts(nla, residuals):
    expected = nla.explain(residuals[:4]).text
    handle = nla.explain(residuals[:4])
    seen = followed(nla, handle, stop=(1, 2))
    assert [len(seen[row, 0]) for row in (1, 2)] == [3, 3]
    assert [handle[row].resolved for row in range(4)] == [True, False, False, True]
    assert [handle[row].text for row in (0, 3)] == [expected[0], expected[3]]
    assert handle.text == expected  # Reading it generates what was stopped.


def test_a_stopped_row_does_not_hold_up_the_batches_after_it(residuals):
    small = NLA(tiny.paths()["av"], batch_size=2, dtype=torch.float32)
    expected = small.explain(residuals[:5]).text
    handle = small.explain(residuals[:5])
    followed(small, handle, stop=(0, 1, 4))
    assert [handle[row].resolved for row in range(5)] == [False, False, True, True, False]
    assert handle[2:4].text == expected[2:4]


def test_a_text_that_two_rows_share_stops_when_both_say_so(nla, residuals):
    both = torch.stack([residuals[0], residuals[0]])
    handle = nla.explain(both)
    followed(nla, handle, stop=(0,))
    assert handle.resolved
    handle = nla.explain(both)
    followed(nla, handle, stop=(0, 1))
    assert not handle[0].resolved
    assert not handle[1].resolved


def test_everything_that_is_pending_can_be_followed(nla, residuals):
    handles = [nla.explain(residuals[row], tokens="a", positions=row) for row in range(3)]
    found = {}

    def on_text(so_far):
        assert so_far.token == "a"
        if so_far.finished:
            found[so_far.position] = so_far.text

    nla.resolve(on_text=on_text)
    assert found == {row: handle.text for row, handle in enumerate(handles)}


def test_where_nothing_streams_the_whole_text_comes_once(nla, residuals):
    plain = NLA(nla.av, checkpoint=nla.checkpoint, engine="generate")
    handle = plain.explain(residuals[:2])
    seen = followed(plain, handle)
    assert seen == {(row, 0): [(handle[row].text, True)] for row in range(2)}


def test_an_error_in_the_function_leaves_the_rows_pending(nla, residuals):
    handle = nla.explain(residuals[0])

    def on_text(so_far):
        raise KeyError("mine")

    with pytest.raises(VerbalizationError, match=r"KeyError: 'mine'.*still pending"):
        nla.resolve(handle, on_text=on_text)
    assert not handle.resolved
    assert handle.text


def test_half_a_tag_and_half_a_character_are_not_shown():
    options = {"opened": "", "tagged": True, "upto": None}
    assert partial_text("<explanation>\nAbout </", **options) == "About"
    assert partial_text("<explanation>\nAbout \ufffd", **options) == "About"
    assert partial_text("Yes \ufffd", **{**options, "tagged": False}) == "Yes"
    assert partial_text("<expl", **{**options, "tagged": False}) == "<expl"
    opened = {**options, "opened": "<explanation>\n"}
    assert partial_text("About Paris", **opened) == "About Paris"
    assert partial_text("<explanation>A\nB", **{**options, "upto": "line"}) == "A"
