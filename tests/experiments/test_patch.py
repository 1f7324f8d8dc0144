"""Patching: effects and explanations against plain hooks, and what is refused."""

import warnings
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnsight_nla import InjectionError, NLAError, NLAWarning, Sweep, tiny
from nnsight_nla.experiments import ExperimentError, kl, logit_difference, patch, probability
from nnsight_nla.experiments.forward import Target

CLEAN = "What a lovely day! People in Paris speak"
CORRUPT = "What a lovely day! People in Rome speak"
METRIC = logit_difference(" French", " Italian")
SUBJECT, LAST, K = 7, 8, 3
MODULES = {"residual": "", "attention": "self_attn.o_proj", "mlp": "mlp"}


class Plain:
    """The plain transformers model with forward hooks: nothing of nnsight, nothing of ours."""

    def __init__(self):
        folder = tiny.paths()["target"]
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, prompt):
        return self.tokenizer(prompt, return_tensors="pt")["input_ids"]

    @torch.no_grad()
    def run(self, prompt, site=None, layer=None, write=None, head=None):
        """Logits at the end, every block's output, and the site's own values."""
        kept = SimpleNamespace(blocks=[], value=None)
        handles = [
            block.register_forward_hook(lambda m, a, out: kept.blocks.append(out[0]))
            for block in self.model.model.layers
        ]
        if site is not None:
            path = MODULES.get(site, MODULES["attention"])
            module = self.model.model.layers[layer].get_submodule(path)
            columns = slice(None) if head is None else slice(head * 32, head * 32 + 32)

            def hook(tensor):
                kept.value = tensor[0, :, columns].clone()
                if write is None:
                    return None
                tensor = tensor.clone()
                tensor[0, :, columns] = write(tensor[0, :, columns])
                return tensor

            def before(module, args):
                new = hook(args[0])
                return None if new is None else (new,)

            # First in line, so that the blocks' hooks see what it wrote.
            handles.append(
                module.register_forward_pre_hook(before)
                if site == "head"
                else module.register_forward_hook(lambda m, a, out: hook(out), prepend=True)
            )
        logits = self.model(input_ids=self.ids(prompt)).logits[0, -1]
        for handle in handles:
            handle.remove()
        kept.logits = logits
        kept.residual = kept.blocks[K]
        return kept

    def difference(self, logits, a=" French", b=" Italian"):
        first, second = (self.tokenizer.encode(each)[0] for each in (a, b))
        return float(logits[first] - logits[second])


@pytest.fixture(scope="module")
def plain():
    return Plain()


def cell(sweep, **where):
    """The one row of the table at this place."""
    found = [row for row in sweep.rows() if all(row[name] == at for name, at in where.items())]
    assert len(found) == 1, where
    return found[0]


@pytest.mark.parametrize("site", ["residual", "attention", "mlp", "head"])
def test_each_cell_is_what_a_plain_hook_gives(model, nla, plain, site):
    heads = [0, 3] if site == "head" else [None]
    sweep = patch(
        model,
        nla,
        CLEAN,
        CORRUPT,
        layers="all",
        positions=[SUBJECT, LAST],
        metric=METRIC,
        site=site,
        heads=heads if site == "head" else None,
        batch_size=5,
    )
    clean, corrupt = plain.run(CLEAN), plain.run(CORRUPT)
    ends = [plain.difference(each.logits) for each in (clean, corrupt)]
    assert len(sweep) == 6 * 2 * len(heads)
    texts, residuals = [], []
    for (layer, at, head), row in zip(
        [(i, p, h) for i in range(6) for h in heads for p in (SUBJECT, LAST)],
        sweep.rows(),
        strict=True,
    ):
        assert (row["layer"], row["position"], row["head"]) == (layer, at, head)
        donor = plain.run(CLEAN, site, layer, head=head).value

        def write(tensor, at=at, donor=donor):
            tensor = tensor.clone()
            tensor[at] = donor[at]
            return tensor

        patched = plain.run(CORRUPT, site, layer, write, head=head)
        number = plain.difference(patched.logits)
        assert row["metric"] == pytest.approx(number, abs=1e-3)
        assert row["effect"] == pytest.approx((number - ends[1]) / (ends[0] - ends[1]), abs=1e-4)
        assert row["answer"] == plain.tokenizer.decode(patched.logits.argmax())
        vector = sweep.outcomes[sweep.cells[sweep.rows().index(row)]].residuals.get(LAST)
        if row["reach"] == "reaches":
            torch.testing.assert_close(vector, patched.residual[LAST], atol=1e-4, rtol=1e-4)
            texts.append(row["after"])
            residuals.append(patched.residual[LAST])
        else:
            assert vector is None
            assert row["after"] is None
    assert texts == nla.explain(torch.stack(residuals)).text
    first = sweep.rows()[0]
    assert first["before"] == nla.explain(corrupt.residual[LAST]).text
    assert first["clean"] == nla.explain(clean.residual[LAST]).text


def test_the_effect_is_one_for_the_clean_run_and_zero_for_the_corrupt(model, nla):
    sweep = patch(model, nla, CLEAN, CORRUPT, layers="all", positions="all", metric=METRIC)
    assert cell(sweep, layer=5, position=LAST)["effect"] == pytest.approx(1.0, abs=1e-4)
    assert cell(sweep, layer=0, position=0)["effect"] == pytest.approx(0.0, abs=1e-5)
    assert sweep.effect(sweep.runs["clean"].metric) == 1.0
    assert sweep.effect(sweep.runs["corrupt"].metric) == 0.0


def test_the_fact_moves_to_the_last_position_and_the_explanation_with_it(model, nla):
    sweep = patch(model, nla, CLEAN, CORRUPT, layers=[0, 3, 5], positions="all", metric=METRIC)
    early = cell(sweep, layer=0, position=SUBJECT)
    assert early["answer"] == " French"
    assert "Rome" in early["before"]
    assert "Paris" in early["after"]
    assert early["text_changed"] is True
    at_k = cell(sweep, layer=K, position=SUBJECT)
    assert abs(at_k["effect"]) < 0.05
    assert at_k["reach"] == "beside the explained position"
    assert at_k["after"] is at_k["text_changed"] is None
    above = cell(sweep, layer=5, position=LAST)
    assert above["effect"] > 0.9
    assert above["reach"] == "downstream of the verbalized layer"
    assert above["after"] is above["text_changed"] is above["cosine"] is None


def test_forwards_of_the_target_and_one_explain(model, nla, monkeypatch):
    batches, explained = [], []
    run, explain = Target.run, nla.explain
    monkeypatch.setattr(
        Target,
        "run",
        lambda self, ids, *a, **k: batches.append(len(ids)) or run(self, ids, *a, **k),
    )
    monkeypatch.setattr(nla, "explain", lambda v: explained.append(len(v)) or explain(v))
    forwards = []
    handle = model._module.register_forward_hook(lambda m, a, out: forwards.append(1))
    sweep = patch(
        model, nla, CLEAN, CORRUPT, layers="all", positions="all", metric=METRIC, batch_size=16
    )
    handle.remove()
    cells = 6 * 9
    assert batches == [1, 1, 16, 16, 16, 6]
    assert len(forwards) == 2 + -(-cells // 16)
    assert len(explained) == 1
    distinct = {row["after"] for row in sweep.rows()} - {None}
    # The two runs, and two positions of three layers: the tokens before the subject are shared, so
    # nothing is new there, and at K the last position becomes the clean run's own.
    assert explained[0] == 2 + 3 * 2
    assert len(distinct) >= 2


def test_equal_vectors_are_verbalized_once(model, nla, monkeypatch):
    written = []
    real = nla._verbalizer.verbalize
    monkeypatch.setattr(
        nla._verbalizer, "verbalize", lambda v, *rest: written.append(v) or real(v, *rest)
    )
    sweep = patch(model, nla, CLEAN, CORRUPT, layers=[0, 1], positions="all", metric=METRIC)
    assert written == [], "nothing is generated before a text is asked for"
    _ = sweep.to_pandas()
    _ = sweep.to_pandas(), sweep.differences(), sweep._repr_html_()
    assert len(written) == 1
    assert len(written[0].unique(dim=0)) == len(written[0])


def test_explained_at_the_patched_position_and_elsewhere(model, nla, plain):
    sweep = patch(
        model,
        nla,
        CLEAN,
        CORRUPT,
        layers=[0, K],
        positions=[SUBJECT, LAST],
        metric=METRIC,
        explain_at=["patched", -1, 2],
    )
    at = [(row["layer"], row["position"], row["explained_at"]) for row in sweep.rows()]
    assert at == [
        (0, 7, 8), (0, 7, 2), (0, 7, 7), (0, 8, 8), (0, 8, 2),
        (3, 7, 8), (3, 7, 2), (3, 7, 7), (3, 8, 8), (3, 8, 2),
    ]  # fmt: skip
    reach = {place: row["reach"] for place, row in zip(at, sweep.rows(), strict=True)}
    assert reach[0, 7, 2] == "after the explained position"
    assert reach[3, 7, 8] == reach[3, 7, 2] == "beside the explained position"
    assert reach[0, 7, 7] == reach[3, 7, 7] == reach[0, 7, 8] == "reaches"
    donor = plain.run(CLEAN).residual[SUBJECT]
    own = cell(sweep, layer=K, position=SUBJECT, explained_at=SUBJECT)
    assert own["after"] == own["clean"] == nla.explain(donor).text
    assert own["explained_token"] == " Rome"


class TestUnequalPrompts:
    LONG = "What a lovely day! What a lovely day! People in Rome speak"

    def test_aligned_positions(self, model, nla, plain):
        kwargs = {"layers": [0], "metric": METRIC}
        with pytest.raises(ExperimentError, match="has no counterpart"):
            patch(model, nla, CLEAN, self.LONG, positions="all", **kwargs)
        ids = [plain.ids(each)[0].tolist() for each in (CLEAN, self.LONG)]
        sweep = patch(model, nla, CLEAN, self.LONG, positions=[(7, len(ids[1]) - 2)], **kwargs)
        row = sweep.rows()[0]
        assert (row["token"], row["source_token"], row["source"]) == (" Rome", " Paris", 7)
        assert row["answer"] == " French"
        donor = plain.run(CLEAN, "residual", 0).value[7]

        def write(tensor):
            tensor = tensor.clone()
            tensor[-2] = donor
            return tensor

        patched = plain.run(self.LONG, "residual", 0, write)
        assert row["metric"] == pytest.approx(plain.difference(patched.logits), abs=1e-3)

    def test_an_explained_position_without_a_counterpart_has_no_clean_text(self, model, nla):
        long = "What a lovely day! The people there, People in Rome speak"
        sweep = patch(
            model, nla, CLEAN, long, layers=[0], positions=[0], metric=METRIC, explain_at=[-1, 7]
        )
        last, odd = sweep.rows()
        assert last["clean"] is not None
        assert odd["clean"] is None
        assert odd["before"] is not None


def test_the_same_metric_on_both_prompts_is_an_error_before_any_cell_is_run(model, nla):
    with pytest.raises(ExperimentError, match="no difference that a patch could restore"):
        patch(model, nla, CLEAN, CLEAN, layers=[0], positions=[0], metric=METRIC)
    with pytest.raises(ExperimentError, match="None: not finite"):
        patch(model, nla, CLEAN, CORRUPT, layers=[0], positions=[0], metric=lambda x: x[:, 0] / 0)


def test_a_cell_without_a_finite_metric_has_none_and_no_nan(model, nla):
    calls = []

    def metric(logits):
        calls.append(len(logits))
        values = logits[:, 1] - logits[:, 2]
        return values / (0 if len(calls) > 2 else 1)

    sweep = patch(model, nla, CLEAN, CORRUPT, layers=[0], positions=[LAST], metric=metric)
    assert sweep.rows()[0]["metric"] is sweep.rows()[0]["effect"] is None
    frame = sweep.to_pandas()
    assert frame["effect"].isna().all()
    assert "nan" not in frame.to_json().lower()


@pytest.mark.parametrize("metric", [probability(" French"), kl("clean"), kl("corrupt")])
def test_the_other_metrics_put_clean_at_one_and_corrupt_at_zero(model, nla, metric):
    sweep = patch(model, nla, CLEAN, CORRUPT, layers=[0, 5], positions=[0, LAST], metric=metric)
    assert cell(sweep, layer=5, position=LAST)["effect"] == pytest.approx(1.0, abs=1e-3)
    assert cell(sweep, layer=5, position=0)["effect"] == pytest.approx(0.0, abs=1e-3)


def test_the_model_is_as_it_was(model, nla):
    with model.trace(CORRUPT):
        before = model.lm_head.output.save()
    state = {name: value.clone() for name, value in model._module.state_dict().items()}
    patch(model, nla, CLEAN, CORRUPT, layers="all", positions="all", metric=METRIC)
    with model.trace(CORRUPT):
        after = model.lm_head.output.save()
    assert torch.equal(before, after)
    assert all(torch.equal(state[k], v) for k, v in model._module.state_dict().items())
    assert all(parameter.grad is None for parameter in model._module.parameters())


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"layers": 6}, "layers=6: expected whole numbers from 0 to 5"),
            ({"positions": 9}, "Position 9: the prompt has 9 tokens"),
            ({"metric": probability("French")}, "'French' is 3 tokens"),
            ({"explain_at": "last"}, "explain_at='last'"),
            ({"batch_size": 0}, "batch_size=0"),
            ({"site": "logits"}, "site='logits'"),
            ({"resume": 3}, "resume=int: expected a Sweep"),
        ],
    )
    def test_options(self, model, nla, given, message):
        options = {"layers": [0], "positions": [0], "metric": METRIC, **given}
        with pytest.raises(NLAError, match=message):
            patch(model, nla, CLEAN, CORRUPT, **options)

    def test_a_model_that_is_none(self, model, nla):
        with pytest.raises(InjectionError, match="TransformersModel"):
            patch("gpt2", nla, CLEAN, CORRUPT, layers=[0], positions=[0], metric=METRIC)

    def test_two_prompts_in_one(self, model, nla):
        with pytest.raises(InjectionError, match="patch takes a clean and a corrupt one"):
            patch(model, nla, [CLEAN, CLEAN], CORRUPT, layers=0, positions=0, metric=METRIC)


class TestStopping:
    """Ctrl-C, a failure, and going on."""

    OPTIONS = MappingProxyType(
        {"layers": [0, 1, 2], "positions": [SUBJECT, LAST], "metric": METRIC, "batch_size": 2}
    )

    @pytest.fixture
    def whole(self, model, nla):
        return patch(model, nla, CLEAN, CORRUPT, **self.OPTIONS)

    def interrupted(self, model, error, after):
        """Raise inside the model's forward, at the batch after `after` of them."""
        seen = []

        def hook(module, args, output):
            seen.append(1)
            if len(seen) > 2 + after:
                raise error

        return model._module.model.layers[1].register_forward_hook(hook)

    def test_ctrl_c_keeps_what_is_done_and_the_model_is_usable(self, model, nla, whole, tmp_path):
        handle = self.interrupted(model, KeyboardInterrupt(), after=2)
        with pytest.warns(NLAWarning, match=r"Stopped after 4 of 6 cells.*resume=sweep"):
            partial = patch(model, nla, CLEAN, CORRUPT, **self.OPTIONS)
        handle.remove()
        assert len(partial) == 4
        assert not partial.complete
        assert repr(partial).endswith("4 of 6 cells>")
        assert partial.rows() == whole.rows()[:4]
        path = partial.to_parquet(tmp_path / "partial.parquet")
        for stored in (partial, path, str(path)):
            ran = []
            counter = model._module.register_forward_hook(lambda m, a, out, ran=ran: ran.append(1))
            resumed = patch(model, nla, CLEAN, CORRUPT, resume=stored, **self.OPTIONS)
            counter.remove()
            assert len(ran) == 2 + 1, "the two prompts, and the one batch that was missing"
            assert resumed.complete
            assert resumed.rows() == whole.rows()

    def test_a_resumed_sweep_verbalizes_only_what_is_new(self, model, nla, whole, tmp_path):
        path = whole.to_parquet(tmp_path / "whole.parquet")
        again = patch(model, nla, CLEAN, CORRUPT, resume=path, **self.OPTIONS)
        assert again.texts.handle is None
        assert again.rows() == whole.rows()

    def test_a_failure_carries_what_is_done(self, model, nla, whole):
        handle = self.interrupted(model, RuntimeError("out of memory"), after=1)
        with pytest.raises(
            ExperimentError, match=r"stopped after 2 of 6 cells.*out of mem"
        ) as caught:
            patch(model, nla, CLEAN, CORRUPT, **self.OPTIONS)
        handle.remove()
        partial = caught.value.partial
        assert isinstance(partial, Sweep)
        resumed = patch(model, nla, CLEAN, CORRUPT, resume=partial, **self.OPTIONS)
        assert resumed.rows() == whole.rows()

    def test_another_sweep_is_not_gone_on_with(self, model, nla, whole):
        options = {**self.OPTIONS, "metric": probability(" French"), "resume": whole}
        with pytest.raises(ExperimentError, match=r"metric was .*logit.* and is .*p\(' French'\)"):
            patch(model, nla, CLEAN, CORRUPT, **options)
        with pytest.raises(ExperimentError, match="tokens was"):
            patch(model, nla, CORRUPT, CLEAN, **{**self.OPTIONS, "resume": whole})

    def test_a_sweep_may_be_widened_by_resuming(self, model, nla, whole):
        wider = {**self.OPTIONS, "layers": "all", "resume": whole}
        sweep = patch(model, nla, CLEAN, CORRUPT, **wider)
        assert len(sweep) == 12
        assert sweep.rows()[:6] == whole.rows()


def test_nothing_is_warned_of(model, nla):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch(model, nla, CLEAN, CORRUPT, layers=0, positions=-1, metric=METRIC).to_pandas()
