"""A text that is longer than the original context has other frequencies from its first token on."""

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config

from nnsight_nla import NLA, Sampling, VerbalizationError
from nnsight_nla.models.rotary import length_of_change
from tests.helpers import plain, random_models

PROMPT = 110
"""The tokens of the tiny pair's prompt."""


def longrope(original: int):
    factors = {"short_factor": [1.0] * 16, "long_factor": [4.0] * 16, "rope_theta": 1e4}
    parameters = {"rope_type": "longrope", "original_max_position_embeddings": original, **factors}
    return {"rope_parameters": parameters, "original_max_position_embeddings": original}


def saved(folder, original: int):
    return random_models.save(folder, "phi3", **longrope(original))


def test_texts_after_a_prompt_past_the_change_are_those_of_a_plain_hook(tmp_path):
    folder, sampling = saved(tmp_path, PROMPT - 10), Sampling(max_new_tokens=12)
    vectors = torch.randn(4, 128, generator=torch.Generator(device="cpu").manual_seed(0))
    nla = NLA(folder, dtype="float32", sampling=sampling)
    assert len(nla.prompt.ids) == PROMPT
    _, tokenizer, _ = plain.load(folder)
    expected = [
        tokenizer.decode(each.tokens, skip_special_tokens=True)
        for each in plain.verbalize(folder, vectors, sampling.max_new_tokens)
    ]
    assert nla.explain(vectors).raw == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize(("original", "most"), [(PROMPT, 1), (PROMPT + 7, 8)])
def test_a_reply_across_the_change_is_refused(tmp_path, original, most):
    nla = NLA(saved(tmp_path, original), dtype="float32")
    assert nla.explain(torch.ones(128), sampling=Sampling(max_new_tokens=most)).raw
    with pytest.raises(VerbalizationError) as caught:
        nla.explain(torch.ones(128), sampling=Sampling(max_new_tokens=most + 1)).text  # noqa: B018
    assert (
        f"max_new_tokens={most + 1} after a prompt of 110 tokens exceeds {original} tokens, after "
        f"which {tmp_path} has other rotary frequencies (longrope), also for the tokens before, so "
        f"that the vector would be lost. Use Sampling(max_new_tokens={most}) or less."
    ) in str(caught.value)


def test_the_length_of_the_change():
    assert (
        length_of_change(Phi3Config(hidden_size=128, num_attention_heads=4, **longrope(64))) == 64
    )
    assert length_of_change(Phi3Config()) is None
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
    assert length_of_change(LlamaConfig(rope_parameters={**yarn, "rope_theta": 1e4})) is None
    assert length_of_change(Gemma3TextConfig()) is None
    nested = Gemma3TextConfig()
    nested.rope_parameters["full_attention"] = longrope(32)["rope_parameters"]
    assert length_of_change(nested) == 32
