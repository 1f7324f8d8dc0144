"""vLLM in this process says what the fast engine says, whatever its scheduler does."""

import math
import os
import threading
from multiprocessing import Pipe

import pandas
import pytest
import torch
from pandas.testing import assert_frame_equal
from safetensors.torch import save_file

from nnsight_nla import NLA, Sampling, VerbalizationError, bulk, experiments, tiny
from nnsight_nla.evaluation.evaluate import evaluate
from nnsight_nla.verbalize.vllm import engine as vllm_engine
from nnsight_nla.verbalize.vllm import rows

WARM = Sampling(temperature=1.0, top_p=0.95, top_k=200, seed=7)


@pytest.fixture(scope="module")
def crowded(on_vllm) -> NLA:
    """An engine in need: prompts in chunks of 64 tokens, and a cache that is too small."""
    scheduler = {"max_num_batched_tokens": 64, "max_num_seqs": 64, "num_gpu_blocks_override": 48}
    options = {**scheduler, "disable_log_stats": False}
    return on_vllm(ar=tiny.paths()["ar"], vllm=options)


def metric(nla: NLA, name: str) -> int:
    found = nla._engine._backend._llm.get_metrics()
    return int(sum(each.value for each in found if each.name == name))


def test_256_texts_are_equal_with_chunked_prompts_and_preemptions(crowded, nla, vectors):
    expected = nla.explain(vectors)
    found = crowded.explain(vectors)
    assert found.raw == expected.raw
    assert len(set(expected.raw)) > 30
    assert metric(crowded, "vllm:num_preemptions") > 0
    assert [each.finish for each in found.capture.replies.values()].count("tag") > 200
    for ours, theirs in zip(_replies(found), _replies(expected), strict=True):
        assert list(ours.ids) == list(theirs.ids)
        assert ours.norm_before == pytest.approx(theirs.norm_before, rel=1e-4)
        assert ours.norm_after == pytest.approx(theirs.norm_after, rel=1e-4)
        assert ours.injection_cosine == pytest.approx(1.0, abs=1e-4)


def test_receipts_warnings_and_the_shape_are_the_same(crowded, nla, vectors):
    block = vectors[:6].reshape(2, 3, -1)
    ours, theirs = crowded.explain(block), nla.explain(block)
    assert ours.shape == (2, 3)
    assert ours.text == theirs.text
    assert ours.warnings == theirs.warnings
    for name in (
        "marker_position",
        "site",
        "operation",
        "layer_convention",
        "dtype",
        "prompt_hash",
    ):
        assert getattr(ours.receipt, name) == getattr(theirs.receipt, name)


def test_two_vectors_one_after_the_other_share_the_prompt_and_nothing_else(crowded, nla, vectors):
    one, other = vectors[0], vectors[200]
    expected = nla.explain(torch.stack([one, other])).raw
    before = metric(crowded, "vllm:prefix_cache_hits")
    assert [crowded.explain(each).raw for each in (one, other, one)] == [*expected, expected[0]]
    assert metric(crowded, "vllm:prefix_cache_hits") > before
    # A vector of another length is the same direction, and so the same request.
    assert crowded.explain(7 * one).raw == expected[0]


def test_a_vector_beyond_float32_squares_is_written(crowded, nla, vectors):
    huge = vectors[0] * (1e30 / vectors[0].norm())
    assert crowded.explain(huge).raw == nla.explain(huge).raw == nla.explain(vectors[0]).raw


def test_the_null_control_is_the_same(crowded, nla):
    ours, theirs = crowded.explain_nothing(), nla.explain_nothing()
    assert ours.raw == theirs.raw
    assert ours.receipt.norm_before == ours.receipt.norm_after
    assert ours.receipt.norm_before == pytest.approx(theirs.receipt.norm_before, rel=1e-4)
    assert math.isnan(ours.receipt.injection_cosine)


def test_draws_are_the_same_also_when_they_are_preempted(crowded, nla, vectors):
    before = metric(crowded, "vllm:num_preemptions")
    ours = crowded.explain(vectors[:32], samples=4, sampling=WARM).samples
    assert metric(crowded, "vllm:num_preemptions") > before
    assert ours == nla.explain(vectors[:32], samples=4, sampling=WARM).samples
    # Greedily, there would be one text of each vector at most.
    assert len({text for row in ours for text in row}) > 32


def test_readings_experiments_evaluations_and_data_sets_take_it(
    crowded, nla, model, vectors, tmp_path
):
    source, text = tmp_path / "vectors.safetensors", "What a lovely day! People in Paris speak"
    save_file({"v": vectors[:12]}, source)

    def tables(of):
        output = tmp_path / f"{of.info()['engine']['name']}.parquet"
        bulk.run(of, source, output, progress=False)
        sweep = experiments.ablate(
            model, of, text, layers=[2, 3], positions=[-1], method="zero",
            metric=experiments.probability(" French"),
        )  # fmt: skip
        figures = evaluate(of, vectors[:6], ["About Paris."] * 6)
        return [
            of.read(model, text).to_pandas(),
            sweep.to_pandas(),
            pandas.json_normalize(figures),
            pandas.read_parquet(output),
        ]

    for found, expected in zip(tables(crowded), tables(nla), strict=True):
        assert_frame_equal(found, expected, check_exact=False, rtol=1e-3, atol=1e-4)


def test_a_lost_vector_is_an_error_of_its_row_and_never_a_text(crowded, nla, vectors, monkeypatch):
    backend = crowded._engine._backend
    real = type(backend).receipts
    lost = int(rows.keys(rows.encoded([0], [0], vectors[1], torch.float32)))
    asked = []

    def forget(self, keys):
        asked.append(list(keys))
        return {key: found for key, found in real(self, keys).items() if key != lost}

    monkeypatch.setattr(type(backend), "receipts", forget)
    handle = crowded.explain(vectors[:3])
    crowded.resolve(handle)
    assert list(handle.errors) == [(1,)]
    assert handle.errors[1,] == vllm_engine.LOST
    assert asked[-1] == [lost]  # It was sent again, past the cache.
    with pytest.raises(VerbalizationError, match="was lost in vLLM"):
        _ = handle.text
    assert [handle[0].raw, handle[2].raw] == [nla.explain(vectors[n]).raw for n in (0, 2)]


def test_a_forgotten_receipt_is_measured_anew(crowded, nla, vectors, monkeypatch):
    backend = crowded._engine._backend
    real, calls = type(backend).receipts, []

    def forget_once(self, keys):
        calls.append(keys)
        return {} if len(calls) == 1 else real(self, keys)

    monkeypatch.setattr(type(backend), "receipts", forget_once)
    assert crowded.explain(vectors[9]).raw == nla.explain(vectors[9]).raw
    assert len(calls) == 2


def test_an_interrupted_batch_leaves_nothing_running(crowded, nla, vectors):
    def interrupt(text):
        raise KeyboardInterrupt

    handle = crowded.explain(-vectors[:100])
    with pytest.raises(KeyboardInterrupt):
        crowded.resolve(handle, on_text=interrupt)
    assert not handle.resolved
    assert not crowded._engine._backend._llm.llm_engine.has_unfinished_requests()
    assert handle.raw == nla.explain(-vectors[:100]).raw


def test_threads_share_the_engine(crowded, nla, vectors):
    parts = (2 * vectors).split(32)
    found: dict[int, list[str]] = {}

    def explain(number):
        found[number] = crowded.explain(parts[number]).raw

    threads = [threading.Thread(target=explain, args=(n,)) for n in range(len(parts))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    expected = nla.explain(2 * vectors).raw
    assert [text for n in range(len(parts)) for text in found[n]] == expected


def test_an_option_that_vllm_refuses_is_quoted(crowded, on_vllm, vectors):
    for options, said in (
        ({"nonsense": 1}, "unexpected keyword argument 'nonsense'"),
        ({"max_num_seqs": -1}, "greater than or equal to 1"),
        ({"kv_cache_memory_bytes": 1000}, "No available memory for the cache"),
    ):
        other = on_vllm(vllm=options)
        with pytest.raises(VerbalizationError, match=rf"(?s)did not start with .*{said}.*vllm={{"):
            other.explain(vectors[0]).raw  # noqa: B018
    assert crowded.explain(-vectors[0]).raw  # The one that runs is not disturbed.


class Ended:
    """An engine whose process has ended."""

    def __init__(self):
        self.llm_engine = self.engine_core = self.resources = self.engine_manager = self
        read, write = Pipe()
        write.close()  # As that of a process that has ended, it is ready at once.
        self.processes, self.sentinel, self.closed = [self], read, 0

    def shutdown(self):
        self.closed += 1


def test_an_engine_that_has_ended_is_started_again(on_vllm):
    backend = on_vllm(vllm={"nonsense": 1})._engine._backend
    ended = backend._llm = Ended()
    backend._process = os.getpid()
    with pytest.raises(VerbalizationError, match="did not start"):
        backend.start()
    assert ended.closed == 1


def test_a_forked_process_does_not_use_the_engine_of_its_parent(on_vllm):
    backend = on_vllm()._engine._backend
    backend._llm, backend._process = Ended(), os.getppid()
    with pytest.raises(VerbalizationError, match=r"forked while vLLM ran.*'spawn'"):
        backend.start()
    backend.close()
    assert backend._llm.closed == 0


def _replies(handle):
    return [handle.capture.replies[row, 0] for row in range(handle.capture.count)]
