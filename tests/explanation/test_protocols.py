"""An NLA has every member of the protocols, with the parameters that they name."""

import inspect

import pytest

from nnsight_nla import NLA
from nnsight_nla.explanation.protocols import Explains, Reconstructs
from nnsight_nla.explanation.records import HandleQueue, Labeller, Owner
from nnsight_nla.remote.pickling import Travels, Unavailable

MEMBERS = [
    (protocol, name)
    for protocol in (Explains, Reconstructs, Owner, Travels)
    for name in vars(protocol)
    if not name.startswith("_")
]


@pytest.mark.parametrize(
    ("protocol", "name"), MEMBERS, ids=lambda each: getattr(each, "__name__", each)
)
def test_an_nla_has_it(nla, protocol, name):
    member = vars(protocol)[name]
    if isinstance(member, property):
        assert hasattr(nla, name)
        return
    theirs = inspect.signature(member).parameters
    ours = inspect.signature(vars(NLA)[name]).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for parameter in theirs:
        assert ours[parameter].kind == theirs[parameter].kind
        assert ours[parameter].default == theirs[parameter].default


@pytest.mark.parametrize("name", [name for name in vars(HandleQueue) if not name.startswith("_")])
def test_both_queues_have_what_a_capture_needs(nla, name):
    assert hasattr(nla.queue, name)
    assert hasattr(Unavailable("gone"), name)


def test_the_labeller_measures(nla):
    theirs, ours = inspect.signature(Labeller.measure), inspect.signature(nla.labeller.measure)
    assert list(theirs.parameters)[1:] == list(ours.parameters)
