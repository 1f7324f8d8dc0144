"""What the queue promises: weak, in batches, nothing lost."""

import gc

import pytest
import torch

from nnsight_nla import NLA, NLAWarning, VerbalizationError, tiny


@pytest.fixture
def small() -> NLA:
    """An NLA that verbalizes two vectors at a time."""
    return NLA(tiny.paths()["av"], batch_size=2, dtype=torch.float32)


@pytest.fixture
def runs(small, monkeypatch):
    """The sizes of the batches that `small` ran; set `.fail` to raise before a batch."""

    class Runs(list):
        fail = None
        at = 0

    seen = Runs()
    real = small._verbalizer.verbalize

    def verbalize(vectors, *rest):
        if seen.fail is not None and len(seen) == seen.at:
            raise seen.fail
        seen.append(len(vectors))
        return real(vectors, *rest)

    monkeypatch.setattr(small._verbalizer, "verbalize", verbalize)
    return seen


def test_one_text_resolves_everything_that_is_pending_in_full_batches(small, runs, residuals):
    first = small.explain(residuals[0])
    rest = small.explain(residuals[1:4])
    assert small.pending == (first, rest)
    assert rest.text
    assert runs == [2, 2]
    assert first.resolved
    assert small.pending == ()


def test_resolve_takes_only_what_it_is_given(small, runs, residuals):
    first, second, third = (small.explain(vector) for vector in residuals[:3])
    small.resolve(second)
    assert (first.resolved, second.resolved, third.resolved) == (False, True, False)
    small.resolve([third])
    assert small.pending == (first,)
    small.resolve()
    assert small.pending == ()
    small.resolve()
    assert runs == [1, 1, 1]


def test_what_nobody_can_reach_is_never_verbalized(small, runs, residuals):
    small.explain(residuals)
    kept = small.explain(residuals[:3])[1]
    gc.collect()
    assert len(small.pending) == 1
    small.resolve()
    assert runs == [1]
    assert kept.resolved


@pytest.mark.parametrize("error", [RuntimeError("boom"), OSError("no device")])
def test_after_an_error_settled_rows_keep_their_text_and_the_rest_stay_pending(
    small, runs, residuals, error
):
    thought = small.explain(residuals[:5])
    runs.fail, runs.at = error, 1
    with pytest.raises(VerbalizationError) as caught:
        small.resolve()
    assert f"{type(error).__name__}: {error}" in str(caught.value)
    assert "3 of 5 rows are still pending" in str(caught.value)
    assert "nla.resolve()" in str(caught.value)
    assert caught.value.__cause__ is error
    assert thought[:2].resolved
    assert not thought[2:].resolved
    runs.fail = None
    assert len(thought.text) == 5
    assert runs == [2, 2, 1]


def test_ctrl_c_while_resolving(small, residuals, monkeypatch):
    """The interrupt arrives in the middle of a generation, inside the model's own forward."""
    expected = small.explain(residuals[:4]).text
    thought = small.explain(residuals[:4])
    calls = []

    def interrupt(module, args):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt

    hook = small.av._module.model.layers[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        _ = thought.text
    hook.remove()
    assert len(calls) == 20
    assert not thought.resolved
    assert small.pending == (thought,)
    assert torch.equal(thought.vectors, residuals[:4])
    assert thought.text == expected


def test_each_sampling_gets_its_own_batches(small, runs, residuals):
    from nnsight_nla import Sampling

    cold = small.explain(residuals[:2])
    warm = small.explain(residuals[:1], samples=2, sampling=Sampling(temperature=1.0))
    small.resolve()
    assert runs == [2, 2]
    assert cold.resolved
    assert warm.resolved


def test_a_thousand_rows_behind_one_text_say_so(nla, residuals, monkeypatch):
    done = nla.explain(residuals[-1])
    reply = done.text and done._capture.replies[0, 0]

    def verbalize(vectors, *rest):
        yield from enumerate([reply] * len(vectors))

    monkeypatch.setattr(nla._verbalizer, "verbalize", verbalize)
    many = nla.explain(residuals[-1].expand(1000, -1))
    with pytest.warns(NLAWarning, match="1,000 rows"):
        _ = many[0].text
    again = nla.explain(residuals[-1].expand(1000, -1))
    nla.resolve()
    assert again.resolved


def test_progress_is_shown_on_a_terminal_after_a_second(nla, residuals, monkeypatch, capsys):
    import sys
    import time

    real = nla._verbalizer.verbalize
    monkeypatch.setattr(
        nla._verbalizer, "verbalize", lambda v, *rest: time.sleep(1.1) or real(v, *rest)
    )
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    handles = nla.explain(residuals.repeat(8, 1)[:65])
    nla.resolve()
    assert handles.resolved
    assert "verbalizing" in capsys.readouterr().err


def test_the_weights_load_at_the_first_text(residuals):
    lazy = NLA(tiny.paths()["av"], dtype=torch.float32)
    thought = lazy.explain(residuals[-1])
    assert not lazy.av.dispatched
    assert not lazy.info()["weights_loaded"]
    assert next(lazy.av._module.parameters()).device.type == "meta"
    assert thought.text
    assert lazy.av.dispatched
