"""The call that gives a reading again."""

import numpy as np
import torch

from nnsight_nla import Sampling
from nnsight_nla.reading.code import call

NONE = {"positions": "all", "generate": None, "layer": None, "claims": "check", "question": None}


def test_defaults_are_left_out():
    assert call('a "b"\n', NONE, Sampling()) == "reading = nla.read(model, 'a \"b\"\\n')"


def test_what_was_given_is_there():
    made = call(
        torch.tensor([[1, 2]]),
        {**NONE, "positions": np.array([0, 3]), "layer": 5},
        Sampling(seed=2),
    )
    assert made == (
        "from nnsight_nla import Sampling\n"
        "reading = nla.read(model, [[1, 2]], positions=[0, 3], layer=5, sampling=Sampling(seed=2))"
    )


def test_a_text_of_a_megabyte_is_not_repeated():
    assert call("x" * 1_000_000, NONE, Sampling()) is None


def test_it_gives_the_same_reading(pair):
    model, nla = pair
    first = nla.read(model, "The cow lives in the barn.", positions=[2, -1])
    names = {"model": model, "nla": nla}
    exec(first.code, names)
    assert names["reading"] == first
