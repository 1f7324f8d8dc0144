"""The embedded pair under every name of a model, for blocks that name models of the Hub."""

import nnsight
import torch

import nnsight_nla
from nnsight_nla import tiny


def stand_in(monkeypatch) -> None:
    """Put the embedded pair in place of every model that is named, and a host that answers."""

    class Target(nnsight.TransformersModel):
        def __init__(self, name, *, task, **options):
            super().__init__(str(tiny.paths()["target"]), task=task, dtype=torch.float32)

    class Pair(nnsight_nla.NLA):
        def __init__(self, name, *, peft=None, remote=False, **options):
            super().__init__(tiny.paths()["av"], dtype=torch.float32)

    monkeypatch.setattr(nnsight, "TransformersModel", Target)
    monkeypatch.setattr(nnsight_nla, "NLA", Pair)
    monkeypatch.setattr(nnsight, "status", lambda raw: {"deployments": {}})
