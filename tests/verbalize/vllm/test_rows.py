"""Rows of prompt_embeds that say what they are: exact in every dtype, and equal on both sides."""

import hashlib

import pytest
import torch

from nnsight_nla.core.injection import unit
from nnsight_nla.verbalize.vllm import rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
IDS = [0, 5, 127, 128, 151_936, 262_143, 2_000_000]


def vectors(count=4, width=64, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prompt_comes_back_token_by_token(dtype):
    sent = rows.encoded(IDS, [2, 4], vectors()[0], dtype)
    kinds = rows.decoded(sent)
    assert sent.dtype == dtype
    assert kinds.vector.tolist() == [n in (2, 4) for n in range(len(IDS))]
    assert kinds.token.tolist() == [n not in (2, 4) for n in range(len(IDS))]
    assert kinds.null.sum() == 0
    assert kinds.ids.tolist() == [0 if n in (2, 4) else IDS[n] for n in range(len(IDS))]
    assert torch.equal(sent[2], sent[4])


def test_each_marker_may_have_a_vector_of_its_own():
    sent = rows.encoded(IDS, [2, 4], vectors(2), torch.float32)
    for place, vector in zip((2, 4), vectors(2), strict=True):
        alone = rows.encoded(IDS, [place], vector, torch.float32)
        assert torch.equal(sent[place], alone[place])
    assert not torch.equal(sent[2], sent[4])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 3e37])
def test_in_float32_the_direction_arrives_bit_for_bit(scale):
    vector = vectors()[0] / vectors()[0].abs().amax() * scale
    sent = rows.encoded([7], [0], vector, torch.float32)
    assert torch.equal(unit(sent), unit(vector[None]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vector_of_any_length_travels_without_overflow(dtype):
    for scale in (1e-30, 1.0, 1e30):
        sent = rows.encoded([7], [0], vectors()[0] * scale, dtype)
        assert torch.isfinite(sent).all()
        assert torch.cosine_similarity(sent.float(), vectors()[:1]).item() > 0.9999


def test_one_entry_alone_is_a_vector_and_no_token():
    for place in range(5):
        for sign in (1.0, -1.0):
            vector = torch.zeros(64)
            vector[place] = sign
            kinds = rows.decoded(rows.encoded([7, 8], [0], vector, torch.bfloat16))
            assert (kinds.vector.tolist(), kinds.token.tolist()) == ([True, False], [False, True])


def test_the_null_control_marks_its_place_and_has_no_vector():
    kinds = rows.decoded(rows.encoded(IDS, [3], None, torch.bfloat16, 64))
    assert kinds.null.tolist() == [n == 3 for n in range(len(IDS))]
    assert not kinds.vector.any()


def test_an_ordinary_embedding_is_none_of_the_three():
    found = rows.decoded(vectors(100) * 50)
    assert not (found.vector | found.token | found.null).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_tell_vectors_apart_and_do_not_depend_on_the_batch(dtype):
    sent = torch.cat([rows.encoded([7], [0], each, dtype) for each in vectors(500)])
    near = sent.clone()
    near[:, 5] = -near[:, 5]
    found = rows.keys(torch.cat([sent, near]))
    assert len(set(found.tolist())) == 1000
    assert [rows.keys(each[None]).item() for each in sent[:9]] == found[:9].tolist()


def test_basis_vectors_have_keys_of_their_own():
    basis = torch.cat([rows.encoded([7], [0], each, torch.bfloat16) for each in torch.eye(256)])
    assert len(set(rows.keys(torch.cat([basis, -basis])).tolist())) == 512


def test_the_weights_of_the_keys_are_the_same_in_every_release():
    """Client and server may have different versions of everything."""
    weights = rows._weights(512, torch.device("cpu")).numpy().tobytes()
    assert hashlib.sha256(weights).hexdigest()[:16] == "294f3a946e87fca7"
