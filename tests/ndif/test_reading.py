"""A reading of a text that the host's model read: the same records as on this machine."""

import pytest
import torch
from nnsight import TransformersModel

from nnsight_nla import NLA, tiny

PARIS = "What a lovely day! People in Paris speak"
CHAT = [{"role": "user", "content": PARIS}]


pytestmark = pytest.mark.usefixtures("as_installed")


@pytest.fixture(scope="module")
def local():
    """The readings made wholly on this machine."""
    model, nla = tiny.load()
    return nla.read(model, PARIS), nla.read(model, CHAT, generate=3, positions="reply")


def same(ours, theirs) -> None:
    assert ours.tokens == theirs.tokens
    assert ours.positions == theirs.positions
    assert ours.explanations == theirs.explanations
    assert [record.part for record in ours] == [record.part for record in theirs]
    for one, other in zip(ours, theirs, strict=True):
        if one.read:
            assert one.norm == pytest.approx(other.norm, rel=1e-4)
            assert one.reconstruction_cosine == pytest.approx(other.reconstruction_cosine, abs=1e-3)


def test_the_target_there_and_the_pair_here(either_ndif, by_path, local):
    target = TransformersModel(by_path(tiny.paths()["target"]), task="text-generation")
    nla = NLA(tiny.paths()["av"], ar=tiny.paths()["ar"], dtype=torch.float32)
    same(nla.read(target, PARIS, remote=True), local[0])
    assert all(each.device.type == "meta" for each in target._module.parameters())


def test_several_prompts(ndif, by_path, local):
    target = TransformersModel(by_path(tiny.paths()["target"]), task="text-generation")
    nla = NLA(tiny.paths()["av"], ar=tiny.paths()["ar"], dtype=torch.float32)
    first, second = nla.read(target, [PARIS, "The cow"], remote=True)
    same(first, local[0])
    same(second, tiny.load()[1].read(tiny.load()[0], "The cow"))


def test_another_layer(either_ndif, by_path):
    target = TransformersModel(by_path(tiny.paths()["target"]), task="text-generation")
    nla = NLA(tiny.paths()["av"], ar=tiny.paths()["ar"], dtype=torch.float32)
    other = {"layer": 1, "claims": "ignore", "positions": [2, -1]}
    here = nla.read(tiny.load()[0], PARIS, **other)
    there = nla.read(target, PARIS, **other, remote=True)
    assert there.layer == 1
    same(there, here)
    assert there[-1].grade == "none"


def test_the_reply_is_written_there_too(ndif, by_path, local):
    target = TransformersModel(by_path(tiny.paths()["target"]), task="text-generation")
    nla = NLA(tiny.paths()["av"], ar=tiny.paths()["ar"], dtype=torch.float32)
    same(nla.read(target, CHAT, generate=3, positions="reply", remote=True), local[1])


def test_target_and_verbalizer_there(ndif, by_path, local):
    target = TransformersModel(by_path(tiny.paths()["target"]), task="text-generation")
    nla = NLA(by_path(tiny.paths()["av"]), remote=True)
    reading = nla.read(target, PARIS, positions=[-1, 2], remote=True)
    assert reading.positions == (2, 8)
    assert reading.explanations[8] == local[0].explanations[8]
    assert reading.scores == (None,) * 9
