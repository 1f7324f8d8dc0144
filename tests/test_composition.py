"""`explain()` inside every kind of nnsight block equals the same vector explained outside."""

import gc
import threading
import weakref

import nnsight
import pytest
import torch

from nnsight_nla import NLA, tiny

PARIS = "What a lovely day! People in Paris speak"
ROME = "What a lovely day! People in Rome speak"
SHORT = "The cow lives in the"


def outside(nla, vector):
    """The text of one vector explained with no trace around."""
    return nla.explain(vector).text


@pytest.fixture
def paris(model, nla):
    """The residual and the text of Paris' last position, read by plain means."""
    with model.trace(PARIS):
        vector = nla.layer(model).output[0, -1].detach().clone().save()
    return vector, outside(nla, vector)


def test_trace(model, nla, paris):
    with model.trace(PARIS):
        thought = nla.explain(nla.layer(model).output[0, -1])
    assert not thought.resolved
    assert thought.shape == ()
    assert torch.equal(thought.vectors, paris[0])
    assert thought.text == paris[1]
    assert "Paris" in thought.text


def test_the_models_output_is_the_same_bit_for_bit_with_explain_in_the_trace(model, nla):
    with model.trace(PARIS):
        without = model.lm_head.output.save()
    with model.trace(PARIS):
        thought = nla.explain(nla.layer(model).output)
        deferred = model.lm_head.output.save()
    with model.trace(PARIS):
        text = nnsight.save(nla.explain(nla.layer(model).output[0, -1]).text)
        closed = model.lm_head.output.save()
    assert torch.equal(without, deferred)
    assert torch.equal(without, closed)
    assert text == thought.text[0][-1]


def test_invokes_of_unequal_length_read_real_positions(model, nla, paris):
    long, short = nla.positions(model, [PARIS, SHORT])
    with model.trace() as tracer:
        with tracer.invoke(PARIS):
            first = nla.explain(nla.layer(model).output[0, long.slice], positions=long.positions)
        with tracer.invoke(SHORT):
            padded = nla.layer(model).output[0, 0].save()
            second = nla.explain(
                nla.layer(model).output[0, short.slice],
                tokens=short.tokens,
                positions=short.positions,
            )
    with model.trace(SHORT):
        alone = nla.layer(model).output[0].save()
    assert second.shape == (len(short.ids),)
    torch.testing.assert_close(second.vectors, alone.detach(), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(padded, alone[0], atol=1e-2), (
        "output[0, 0] of a short prompt is a pad"
    )
    assert first[-1].text == paris[1]
    assert second[-1].text == outside(nla, alone[-1])
    assert "cow" in second[-1].text
    assert second.tokens[-1].strip() == "the"


def test_generation_steps(model, nla):
    with model.generate(PARIS, max_new_tokens=3) as tracer:
        steps = nnsight.save([])
        vectors = nnsight.save([])
        for _ in tracer.iter[:3]:
            residual = nla.layer(model).output[0, -1]
            steps.append(nla.explain(residual))
            vectors.append(residual.detach().clone())
    assert [step.text for step in steps] == [outside(nla, vector) for vector in vectors]
    assert len({step.text for step in steps}) > 1


def test_session(model, nla, paris):
    with model.session():
        with model.trace(PARIS):
            residual = nla.layer(model).output[0, -1]
            first = nla.explain(residual)
        with model.trace(ROME):
            nla.layer(model).output[0, -1] = residual
            second = nla.explain(nla.layer(model).output[0, -1])
    assert first.text == second.text == paris[1]


def test_a_patch_before_the_line_reaches_the_handle(model, nla, paris):
    with model.trace(ROME):
        nla.layer(model).output[0, -1] = paris[0]
        thought = nla.explain(nla.layer(model).output[0, -1])
    assert thought.text == paris[1]


def test_a_patch_of_the_subject_below_k_makes_the_explanation_the_donors(model, nla):
    where = nla.positions(model, PARIS)[0].tokens.index(" Paris")
    with model.trace(PARIS):
        donor = model.model.layers[0].output[0, where].save()
    with model.trace(ROME):
        model.model.layers[0].output[0, where] = donor
        patched = nla.explain(nla.layer(model).output[0, -1])
    with model.trace(ROME):
        clean = nla.explain(nla.layer(model).output[0, -1])
    assert "Rome" in clean.text
    assert "Paris" in patched.text
    assert "Rome" not in patched.text


@pytest.mark.parametrize("edit", ["patch", "zero", "steer", "in place"])
def test_an_edit_after_the_line_does_not_reach_the_handle(model, nla, paris, edit):
    with model.trace(PARIS):
        residual = nla.layer(model).output
        thought = nla.explain(residual[0, -1])
        if edit == "patch":
            nla.layer(model).output[0, -1] = torch.randn(128)
        elif edit == "zero":
            nla.layer(model).output = torch.zeros_like(residual)
        elif edit == "steer":
            nla.layer(model).output = residual + 10
        else:
            residual[:] = 0
        after = model.lm_head.output.save()
    with model.trace(PARIS):
        clean = model.lm_head.output.save()
    assert torch.equal(thought.vectors, paris[0])
    assert thought.text == paris[1]
    assert not torch.equal(after, clean), "the edit itself did happen"


def test_zero_ablation_of_block_k_is_recorded_and_everything_else_gets_its_text(model, nla, paris):
    with model.trace(PARIS):
        kept = nla.explain(nla.layer(model).output[0, -1])
        nla.layer(model).output[:] = 0
        gone = nla.explain(nla.layer(model).output[0])
        logits = model.lm_head.output.save()
    assert set(gone.errors) == {(i,) for i in range(len(gone))}
    assert "is zero" in gone.errors[0,]
    assert kept.text == paris[1]
    assert logits.shape[1] == len(gone)


def test_steering_before_the_line_is_what_is_explained(model, nla):
    direction = torch.randn(128, generator=torch.Generator().manual_seed(0))
    with model.trace(PARIS):
        nla.layer(model).output[0, -1] += direction
        steered = nla.layer(model).output[0, -1].detach().clone().save()
        thought = nla.explain(nla.layer(model).output[0, -1])
    assert torch.equal(thought.vectors, steered)
    assert thought.text == outside(nla, steered)


def test_gradients_flow_as_without_and_none_reaches_the_handle(model, nla, paris):
    with model.trace(PARIS):
        residual = nla.layer(model).output
        residual.requires_grad_(True)
        thought = nla.explain(residual[0, -1])
        loss = model.lm_head.output[0, -1].logsumexp(dim=-1)
        with loss.backward():
            gradient = residual.grad.save()
    with model.trace(PARIS):
        residual = nla.layer(model).output
        residual.requires_grad_(True)
        loss = model.lm_head.output[0, -1].logsumexp(dim=-1)
        with loss.backward():
            reference = residual.grad.save()
    assert torch.equal(gradient, reference)
    assert thought.vectors.grad_fn is None
    assert not thought.vectors.requires_grad
    assert thought.text == paris[1]
    model.zero_grad()


def test_scan_gives_a_handle_with_a_shape_and_no_text(model, nla):
    with model.scan(PARIS):
        thought = nla.explain(nla.layer(model).output)
        last = thought[0, -1]
    assert len(thought.shape) == 2
    assert last.shape == ()
    assert not thought.resolved
    with pytest.raises(Exception, match="scan"):
        _ = thought.text
    assert nla.pending == ()


def test_a_batch_of_prompts(model, nla, paris):
    with model.trace([PARIS, ROME]):
        thought = nla.explain(nla.layer(model).output[:, -1])
    assert thought.shape == (2,)
    assert thought.text[0] == paris[1]
    assert "Rome" in thought.text[1]
    assert [part.text for part in thought] == thought.text


def test_two_nlas_in_one_trace(model, nla, paris):
    other = NLA(tiny.paths()["av"], dtype=torch.float32)
    with model.trace(PARIS):
        mine = nla.explain(nla.layer(model).output[0, -1])
        theirs = other.explain(other.layer(model).output[0, -1])
    assert other.pending == (theirs,)
    assert nla.pending == (mine,)
    assert mine.text == theirs.text == paris[1]


def test_parts_taken_in_the_block_survive_it(model, nla, paris):
    with model.trace(PARIS):
        whole = nla.explain(nla.layer(model).output)
        last = whole[0, -1]
        tail = whole[0, -2:]
    assert whole.shape[0] == 1
    assert last.text == paris[1] == whole.text[0][-1] == tail.text[1]


def test_a_part_alone_verbalizes_its_own_row_only(model, nla, paris, monkeypatch):
    sizes = []
    real = nla._verbalizer.verbalize
    monkeypatch.setattr(
        nla._verbalizer, "verbalize", lambda v, *rest: sizes.append(len(v)) or real(v, *rest)
    )
    with model.trace(PARIS):
        last = nla.explain(nla.layer(model).output)[0, -1]
    assert last.text == paris[1]
    assert sizes == [1]


def test_a_block_that_raises_leaves_nothing_pending(model, nla, paris):
    def run():
        with model.trace(PARIS):
            nla.explain(nla.layer(model).output)
            raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        run()
    gc.collect()
    assert nla.pending == ()
    with model.trace(PARIS):
        thought = nla.explain(nla.layer(model).output[0, -1])
    assert thought.text == paris[1]


def test_a_replayed_edit_block_leaves_nothing_pending(model, nla):
    with model.edit() as (_, edited):
        nla.explain(nla.layer(edited).output)
    for _ in range(3):
        with edited.trace(PARIS):
            logits = edited.lm_head.output.save()
    gc.collect()
    assert nla.pending == ()
    with model.trace(PARIS):
        plain = model.lm_head.output.save()
    assert torch.equal(logits, plain)


def test_the_closed_loop(model, nla):
    """`.text`, read at K inside the block, decides what a later layer of this forward does."""

    def run(prompt):
        with model.trace(prompt):
            thought = nla.explain(nla.layer(model).output[0, -1])
            if "Paris" in thought.text:
                model.model.layers[5].output[:] = 0
            logits = model.lm_head.output.save()
        return thought.text, logits

    with model.trace(ROME):
        untouched = model.lm_head.output.save()
    text, silenced = run(PARIS)
    assert "Paris" in text
    assert silenced.abs().max() == 0
    text, logits = run(ROME)
    assert "Rome" in text
    assert torch.equal(logits, untouched)


def test_text_inside_a_trace_of_the_verbalizer_itself_says_what_to_write_instead(nla):
    with (
        pytest.raises(Exception, match="one trace per model at a time") as caught,
        nla.av.trace("a b c"),
    ):
        thought = nla.explain(nla.av.model.layers[3].output[0, -1])
        _ = thought.text
    assert "after the `with` block" in str(caught.value)
    del caught
    with nla.av.trace("a b c"):
        thought = nla.explain(nla.av.model.layers[3].output[0, -1])
    assert isinstance(thought.text, str)


def test_a_verbalizer_that_is_the_target_works_with_the_text_read_after_the_block(model):
    same = NLA(model, checkpoint=tiny.paths()["av"])
    assert same.av is model
    with model.trace(PARIS):
        thought = same.explain(same.layer(model).output[0, -1])
    assert isinstance(thought.text, str)
    with pytest.raises(Exception, match="one trace per model"), model.trace(PARIS):
        _ = same.explain(same.layer(model).output[0, -1]).text


def test_two_threads_wait_for_each_other(nla, residuals):
    expected = [outside(nla, vector) for vector in residuals]
    found: dict[int, list[str]] = {}

    def work(number: int) -> None:
        handles = [nla.explain(vector) for vector in residuals]
        found[number] = [handle.text for handle in handles]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), expected)


def test_target_in_one_thread_and_verbalizer_in_another(model, nla, residuals):
    expected = [outside(nla, vector) for vector in residuals]
    stop = threading.Event()
    traced: list[torch.Tensor] = []

    def trace() -> None:
        while not stop.is_set():
            with model.trace(PARIS):
                traced.append(model.lm_head.output.save())

    thread = threading.Thread(target=trace)
    thread.start()
    try:
        texts = [nla.explain(vector).text for vector in residuals]
    finally:
        stop.set()
        thread.join()
    assert texts == expected
    assert len(traced) > 0
    assert all(torch.equal(traced[0], each) for each in traced)


def test_nothing_is_left_behind(model, nla):
    """No hook, no gradient, no reference to the trace or to the live activation."""

    def run():
        with model.trace(PARIS):
            residual = nla.layer(model).output
            alive = nnsight.save([weakref.ref(residual)])
            thought = nla.explain(residual[0])
        return alive[0], thought

    hooks = [len(module._forward_hooks) for module in model._module.modules()]
    activation, thought = run()
    assert thought.text
    gc.collect()
    assert activation() is None
    assert [len(module._forward_hooks) for module in model._module.modules()] == hooks
    assert all(each.grad is None for each in model._module.parameters())
    assert all(each.grad is None for each in nla.av._module.parameters())
    capture = weakref.ref(thought._capture)
    del thought
    gc.collect()
    assert capture() is None


# Interventions of several invokes, sites and steps: the intervention and the explanations are what
# plain nnsight gives. "Plain" below is the same block without a line of ours, the residual saved.


def test_a_donor_from_one_invoke_written_into_another_behind_a_barrier(model, nla, paris):
    def run(explain):
        with model.trace() as tracer:
            barrier = tracer.barrier(2)
            with tracer.invoke(PARIS):
                donor = model.model.layers[0].output[0, -2].clone()
                barrier()
                first = explain(nla.layer(model).output[0, -1])
            with tracer.invoke(ROME):
                barrier()
                model.model.layers[0].output[0, -2] = donor
                second = explain(nla.layer(model).output[0, -1])
                logits = model.lm_head.output[0, -1].save()
        return first, second, logits

    first, second, logits = run(nla.explain)
    plain_first, plain_second, plain_logits = run(lambda vector: vector.detach().clone().save())
    assert torch.equal(logits, plain_logits)
    assert torch.equal(first.vectors, plain_first)
    assert torch.equal(second.vectors, plain_second)
    assert first.text == paris[1]
    assert second.text == outside(nla, plain_second)
    assert "Paris" in second.text
    assert "Rome" not in second.text
    assert model.tokenizer.decode(logits.argmax()) == " French"


def test_several_sites_in_one_block(model, nla):
    """A head, an MLP and a residual are written on the way to K, and another above it."""

    def run(explain):
        layers = model.model.layers
        with model.trace(PARIS):
            layers[0].self_attn.o_proj.input[:, -1, 32:64] = 0
            layers[1].mlp.output[:, -2] *= 2
            layers[2].output[:, -1] += 1
            thought = explain(nla.layer(model).output[0, -1])
            layers[4].output[:, -2] = 0
            logits = model.lm_head.output.save()
        return thought, logits

    thought, logits = run(nla.explain)
    vector, plain = run(lambda vector: vector.detach().clone().save())
    assert torch.equal(logits, plain)
    assert torch.equal(thought.vectors, vector)
    assert thought.text == outside(nla, vector)
    with model.trace(PARIS):
        untouched = nla.layer(model).output[0, -1].save()
    assert not torch.allclose(vector, untouched, atol=1e-2), "the interventions reach K"


def test_generation_steps_with_an_intervention_at_one_of_them(model, nla):
    """Step 1 alone is steered below K: its explanation is the steered state's, step 0's is not."""
    push = torch.randn(128, generator=torch.Generator().manual_seed(0)) * 3

    def run(explain, steer):
        with model.generate(PARIS, max_new_tokens=3) as tracer:
            found = nnsight.save([])
            for step in tracer.iter[:3]:
                if step == 1 and steer:
                    model.model.layers[1].output[:, -1] += push
                found.append(explain(nla.layer(model).output[0, -1]))
            tokens = tracer.result.save()
        return found, tokens

    steps, tokens = run(nla.explain, True)
    vectors, plain = run(lambda vector: vector.detach().clone(), True)
    untouched, _ = run(lambda vector: vector.detach().clone(), False)
    assert torch.equal(tokens, plain)
    assert [step.text for step in steps] == [outside(nla, vector) for vector in vectors]
    assert torch.equal(vectors[0], untouched[0])
    assert not torch.allclose(vectors[1], untouched[1], atol=1e-2)


def test_gradients_through_a_patched_run(model, nla, paris):
    """The patch, the gradient at the donor's place and the explanation are plain nnsight's."""
    with model.trace(PARIS):
        donor = model.model.layers[0].output[0, -2].detach().clone().save()

    def run(explain):
        with model.trace(ROME):
            residual = model.model.layers[0].output
            residual[:, -2] = donor
            residual.requires_grad_(True)
            thought = explain(nla.layer(model).output[0, -1])
            loss = model.lm_head.output[0, -1].logsumexp(dim=-1)
            with loss.backward():
                gradient = residual.grad.save()
        model.zero_grad()
        return thought, gradient

    thought, gradient = run(nla.explain)
    vector, plain = run(lambda vector: vector.detach().clone().save())
    assert torch.equal(gradient, plain)
    assert gradient[0, -2].abs().max() > 0
    assert torch.equal(thought.vectors, vector)
    assert thought.vectors.grad_fn is None
    assert thought.text == outside(nla, vector)
    assert "Paris" in thought.text


def test_a_skipped_block(model, nla):
    def run(explain, skip):
        with model.trace(PARIS):
            if skip:
                below = model.model.layers[1].output
                model.model.layers[2].skip(below)
            thought = explain(nla.layer(model).output[0, -1])
            logits = model.lm_head.output.save()
        return thought, logits

    thought, logits = run(nla.explain, True)
    vector, plain = run(lambda vector: vector.detach().clone().save(), True)
    whole, _ = run(lambda vector: vector.detach().clone().save(), False)
    assert torch.equal(logits, plain)
    assert torch.equal(thought.vectors, vector)
    assert not torch.allclose(vector, whole, atol=1e-2)
    assert thought.text == outside(nla, vector)


def test_a_skip_of_the_verbalized_block_itself(model, nla):
    with model.trace(PARIS):
        below = model.model.layers[2].output
        nla.layer(model).skip(below)
        thought = nla.explain(nla.layer(model).output[0, -1])
        passed = below[0, -1].detach().clone().save()
    assert torch.equal(thought.vectors, passed)
    assert thought.text == outside(nla, passed)


def test_an_edited_model(model, nla, paris):
    """An edit that patches below K is part of every later trace of the edited model only."""
    with model.trace(PARIS):
        donor = model.model.layers[0].output[0, -2].detach().clone().save()
    with model.edit() as (_, edited):
        edited.model.layers[0].output[:, -2] = donor
    with edited.trace(ROME):
        thought = nla.explain(nla.layer(edited).output[0, -1])
        logits = edited.lm_head.output.save()
    with model.trace(ROME):
        model.model.layers[0].output[:, -2] = donor
        by_hand = nla.layer(model).output[0, -1].detach().clone().save()
        plain = model.lm_head.output.save()
    with model.trace(ROME):
        clean = nla.explain(nla.layer(model).output[0, -1])
    assert torch.equal(logits, plain)
    assert torch.equal(thought.vectors, by_hand)
    assert thought.text == outside(nla, by_hand)
    assert "Paris" in thought.text
    assert "Rome" in clean.text


def test_a_session_with_a_patch_below_k_and_one_above(model, nla, paris):
    layers = model.model.layers
    with model.session():
        with model.trace(PARIS):
            early = layers[0].output[0, -2].clone()
            late = layers[5].output[0, -1].clone()
        with model.trace(ROME):
            layers[0].output[0, -2] = early
            below = nla.explain(nla.layer(model).output[0, -1])
        with model.trace(ROME):
            above = nla.explain(nla.layer(model).output[0, -1])
            layers[5].output[0, -1] = late
            token = model.lm_head.output[0, -1].argmax().save()
    assert "Paris" in below.text
    assert "Rome" in above.text, "a patch above K cannot reach what is explained"
    assert model.tokenizer.decode(token) == " French"
