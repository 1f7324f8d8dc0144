"""Opening the AV and the AR from what a caller passes; no weights are loaded."""

import pytest
import torch

from nnsight_nla import Checkpoint, CheckpointError, Injection, NLAWarning, tiny
from nnsight_nla.models.memory import Memory
from nnsight_nla.models.open import OpenOptions, open_reconstructor, open_verbalizer

PATHS = tiny.paths()
K = 3


def options(**more) -> OpenOptions:
    given = {"target": None, "remote": False, "memory": Memory(), "load": {"dtype": torch.float32}}
    return OpenOptions(**{**given, **more})


def opened(source=PATHS["av"], where=None, *, checkpoint=None, peft=None):
    return open_verbalizer(source, where or options(), checkpoint=checkpoint, peft=peft)


def blocks(runtime) -> int:
    return len(runtime.model.model.layers)


class TestVerbalizer:
    def test_is_read_without_its_weights(self):
        found = opened()
        assert not found.runtime.loaded
        assert found.runtime.role == "verbalizer"
        assert found.checkpoint.layer == K
        marker = found.prompt.marker_position
        assert found.prompt.ids[marker] == found.checkpoint.marker_id
        assert found.checkpoint.left_id == found.prompt.ids[marker - 1]
        assert found.checkpoint.source["tokenizer"] == str(PATHS["av"])

    def test_missing_neighbours_are_filled_in_and_say_where_from(self):
        full = Checkpoint.load(PATHS["av"])
        bare = Checkpoint(**{**vars(full), "left_id": None, "right_id": None, "source": {}})
        found = opened(checkpoint=bare).checkpoint
        assert (found.left_id, found.right_id) == (full.left_id, full.right_id)
        assert found.source["left_id"] == "the live tokenizer"
        assert found.source["template"] == "the caller"

    def test_checkpoint_may_be_a_path_or_an_injection(self):
        assert opened(checkpoint=PATHS["av"]).checkpoint == opened().checkpoint
        injection = Injection(layer=2, scale=3.0)
        assert opened(checkpoint=injection).checkpoint.injection == injection
        with pytest.raises(CheckpointError, match=r"^checkpoint=5: expected a Checkpoint, an Inj"):
            opened(checkpoint=5)

    def test_a_live_model_is_used_as_it_is_and_never_unloaded(self, pair):
        where = options(load={})
        found = opened(pair[1].av, where, checkpoint=PATHS["av"])
        assert found.runtime.model is pair[1].av
        pair[1].av.dispatch()
        where.memory.unload()
        assert found.runtime.loaded

    def test_one_that_was_opened_from_a_path_is_unloaded(self):
        where = options()
        found = opened(where=where)
        with found.runtime.use():
            assert found.runtime.loaded
        where.memory.unload()
        assert not found.runtime.loaded

    def test_remote(self):
        found = opened(where=options(remote=True))
        assert found.runtime.remote
        with found.runtime.use() as model:
            assert not model.dispatched


class TestReconstructor:
    def test_is_read_without_its_weights(self):
        found = open_reconstructor(PATHS["ar"], options(), opened().checkpoint)
        assert not found.runtime.loaded
        assert found.runtime.role == "reconstructor"
        assert found.layout.head.shape == (128, 128)
        assert blocks(found.runtime) == K + 1
        assert len(found.tokenizer) == len(opened().runtime.model.tokenizer)

    def test_a_full_base_is_cut_here_and_not_on_a_host(self):
        checkpoint = opened().checkpoint
        with pytest.warns(NLAWarning, match=r"identity as head, .* only a lower bound"):
            here = open_reconstructor(PATHS["target"], options(), checkpoint)
        assert blocks(here.runtime) == K + 1
        with pytest.warns(NLAWarning, match="only a lower bound"):
            there = open_reconstructor(PATHS["target"], options(remote=True), checkpoint)
        assert blocks(there.runtime) == 6

    def test_one_of_another_layer_is_refused(self):
        checkpoint = Checkpoint(**{**vars(opened().checkpoint), "layer": 2})
        with pytest.raises(CheckpointError, match="verbalizer and reconstructor of one checkpoint"):
            open_reconstructor(PATHS["ar"], options(), checkpoint)
