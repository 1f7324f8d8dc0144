"""Ablation: effects against plain hooks on the plain model, and what is refused."""

import pytest
import torch

from nnsight_nla import NLA, NLAError, Sampling, tiny
from nnsight_nla.experiments import ExperimentError, ablate, kl, probability, steer
from tests.experiments.test_patch import CLEAN, CORRUPT, LAST, SUBJECT, K, Plain

FRENCH = probability(" French")
REFERENCE = ["What a lovely day! People in Madrid speak", "What a lovely day! People in Oslo speak"]
OTHERS = ["The cow lives in the", "Cooks in Japan make", "What a lovely day!"]


@pytest.fixture(scope="module")
def plain():
    return Plain()


def direction(seed=0, width=128):
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def number(plain, logits):
    return float(logits.softmax(-1)[plain.tokenizer.encode(" French")[0]])


def agrees(plain, row, site, layer, head, write):
    """The row's metric and effect are those of a plain hook that writes the same."""
    base, run = plain.run(CLEAN), plain.run(CLEAN, site, layer, write, head=head)
    assert row["metric"] == pytest.approx(number(plain, run.logits), abs=1e-4)
    expected = number(plain, run.logits) - number(plain, base.logits)
    assert row["effect"] == pytest.approx(expected, abs=1e-4)
    return run


def at(position, value):
    def write(tensor):
        tensor = tensor.clone()
        tensor[position] = value(tensor[position]) if callable(value) else value
        return tensor

    return write


@pytest.mark.parametrize("site", ["residual", "attention", "mlp", "head"])
def test_zero(model, nla, plain, site):
    head = 1 if site == "head" else None
    sweep = ablate(
        model, nla, CLEAN, layers=[0, 1, K, 4], positions=[SUBJECT, LAST], metric=FRENCH,
        method="zero", site=site, heads=head,
    )  # fmt: skip
    assert len(sweep) == 8
    texts, residuals = [], []
    for row in sweep.rows():
        run = agrees(plain, row, site, row["layer"], head, at(row["position"], 0.0))
        if row["reach"] == "reaches" and row["error"] is None:
            texts.append(row["after"])
            residuals.append(run.residual[LAST])
    assert len(texts) >= 4
    assert texts == nla.explain(torch.stack(residuals)).text


def test_a_residual_that_was_zeroed_at_k_has_its_reason_in_the_row(model, nla):
    sweep = ablate(model, nla, CLEAN, layers=[0, K], positions=[LAST], metric=FRENCH, method="zero")
    fine, gone = sweep.rows()
    assert fine["error"] is None
    assert gone["reach"] == "reaches"
    assert gone["after"] is gone["text_changed"] is gone["cosine"] is None
    assert gone["error"].startswith("after: this vector is zero")
    assert gone["before"] == fine["before"]
    assert gone["effect"] < -0.5
    differences = sweep.differences()
    assert differences["error"][1].startswith("after: this vector is zero")
    assert differences["change"].isna().tolist() == [False, True]
    assert len(sweep.differences("output, not text")) <= 1, "a row without a text is left out"


def test_mean_at_the_same_position(model, nla, plain):
    sweep = ablate(
        model, nla, CLEAN, layers=[0, 2], positions=[SUBJECT], metric=FRENCH, method="mean",
        reference=REFERENCE,
    )  # fmt: skip
    for row in sweep.rows():
        values = [plain.run(each, "residual", row["layer"]).value[SUBJECT] for each in REFERENCE]
        mean = torch.stack(values).mean(dim=0)
        agrees(plain, row, "residual", row["layer"], None, at(SUBJECT, mean))


def test_mean_over_all_tokens_but_the_first(model, nla, plain):
    sweep = ablate(
        model, nla, CLEAN, layers=[1], positions=[SUBJECT], metric=FRENCH, method="mean",
        reference=OTHERS, over="tokens", site="mlp",
    )  # fmt: skip
    values = torch.cat([plain.run(each, "mlp", 1).value[1:] for each in OTHERS])
    agrees(plain, sweep.rows()[0], "mlp", 1, None, at(SUBJECT, values.mean(dim=0)))


@pytest.mark.parametrize("over", ["position", "tokens"])
def test_resample_draws_one_reference_for_a_position_whatever_the_layer(model, nla, plain, over):
    reference = REFERENCE if over == "position" else OTHERS
    options = {"layers": [0, 1], "positions": "all", "metric": FRENCH, "method": "resample"}
    options |= {"reference": reference, "over": over}
    sweep = ablate(model, nla, CLEAN, seed=3, **options)
    again = ablate(model, nla, CLEAN, seed=3, **options)
    other = ablate(model, nla, CLEAN, seed=4, **options)
    metrics = [[row["metric"] for row in each.rows()] for each in (sweep, again, other)]
    assert metrics[0] == metrics[1]
    assert metrics[0] != metrics[2]
    drawn = {}
    for row in (each for each in sweep.rows() if each["position"] in (SUBJECT, LAST)):
        runs = [plain.run(each, "residual", row["layer"]).value for each in reference]
        if over == "position":
            choices = [run[row["position"]] for run in runs]
        else:
            choices = list(torch.cat([run[1:] for run in runs]))
        numbers = [
            number(plain, plain.run(CLEAN, "residual", row["layer"], at(row["position"], v)).logits)
            for v in choices
        ]
        fits = {i for i, each in enumerate(numbers) if abs(each - row["metric"]) < 1e-4}
        assert fits, "the value of one of the references"
        drawn[row["position"]] = fits & drawn.get(row["position"], fits)
    assert all(drawn.values()), "the same one in both layers"


def test_projecting_out_a_direction(model, nla, plain):
    u = direction()
    unit = u / u.norm()
    sweep = ablate(
        model, nla, CLEAN, layers=[0, K], positions=[SUBJECT, LAST], metric=FRENCH,
        method="project", direction=u * 17,
    )  # fmt: skip
    for row in sweep.rows():
        write = at(row["position"], lambda h: h - (h @ unit) * unit)
        agrees(plain, row, "residual", row["layer"], None, write)
    vector = sweep.outcomes[sweep.cells[-1]].residuals[LAST]
    assert float(vector @ unit) == pytest.approx(0.0, abs=1e-4)


def test_every_position_at_once(model, nla, plain):
    sweep = ablate(
        model, nla, CLEAN, layers=[1, K], positions="every", metric=FRENCH, method="zero",
        site="attention",
    )  # fmt: skip
    for row in sweep.rows():
        assert row["position"] is None
        assert row["token"] == "every"
        assert row["reach"] == "reaches"
        agrees(plain, row, "attention", row["layer"], None, lambda t: t * 0)


def test_ablating_the_subject_takes_it_from_the_explanation(model, nla):
    sweep = ablate(
        model, nla, CLEAN, layers=[0], positions=[0, SUBJECT], metric=FRENCH, method="mean",
        reference=OTHERS, over="tokens",
    )  # fmt: skip
    elsewhere, subject = sweep.rows()
    assert "Paris" in elsewhere["after"]
    assert "Paris" not in subject["after"]


def test_divergence_from_the_untouched_run(model, nla, plain):
    sweep = ablate(
        model, nla, CLEAN, layers=[0, 5], positions=[LAST], metric=kl("clean"), method="zero"
    )
    assert sweep.runs["clean"].metric == 0.0
    base = plain.run(CLEAN).logits.log_softmax(-1)
    for row in sweep.rows():
        run = plain.run(CLEAN, "residual", row["layer"], at(LAST, 0.0)).logits.log_softmax(-1)
        assert row["effect"] == pytest.approx(float((base.exp() * (base - run)).sum()), rel=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "delete"}, "'zero', 'mean', 'resample', 'project'"),
        ({"method": "mean"}, r"needs prompts to take values from: reference=\[prompt"),
        ({"method": "mean", "reference": CLEAN}, "needs prompts"),
        ({"method": "mean", "reference": OTHERS}, r'9 tokens and .* \[5\].*over="tokens"|\[4, 5\]'),
        ({"method": "mean", "reference": REFERENCE, "over": "all"}, "'position' or 'tokens'"),
        ({"method": "zero", "reference": REFERENCE}, "goes with 'mean' and 'resample'"),
        ({"method": "project"}, "direction= goes with method='project'"),
        ({"method": "zero", "direction": direction()}, "direction= goes with method='project'"),
        ({"method": "project", "direction": direction(width=3)}, r"direction is \[3\].*\[128\]"),
        ({"method": "project", "direction": torch.zeros(128)}, "it has no direction"),
        ({"method": "project", "direction": [1.0] * 128}, "direction is list"),
        ({"method": "zero", "metric": kl("corrupt")}, r"has the runs \['clean'\]"),
        ({"method": "zero", "positions": "aligned"}, "'all', 'every'"),
        ({"method": "mean", "reference": ["The"], "over": "tokens"}, "leaves out first tokens"),
    ],
)
def test_ablations_that_do_not_fit(model, nla, given, message):
    options = {"layers": [0], "positions": [0], "metric": FRENCH, **given}
    with pytest.raises(NLAError, match=message):
        ablate(model, nla, CLEAN, **options)


def test_another_vector_or_method_is_not_gone_on_with(model, nla):
    options = {"layers": [0], "positions": [0], "metric": FRENCH}
    first = steer(model, nla, CLEAN, vector=direction(), **options)
    with pytest.raises(ExperimentError, match="settings was"):
        steer(model, nla, CLEAN, vector=direction(1), resume=first, **options)
    zero = ablate(model, nla, CLEAN, method="zero", **options)
    with pytest.raises(ExperimentError, match=r"settings was .*zero.* and is .*mean"):
        ablate(model, nla, CLEAN, method="mean", reference=REFERENCE, resume=zero, **options)
    with pytest.raises(ExperimentError, match="experiment was 'ablate' and is 'steer'"):
        steer(model, nla, CLEAN, vector=direction(), resume=zero, **options)


def test_an_oracle_is_asked_about_the_ablated_residual(model, plain):
    oracle = NLA.on(model, av=tiny.paths()["oracle"], sampling=Sampling(max_new_tokens=12))
    asked = {"question": "What is the subject?", "positions": [LAST], "metric": FRENCH}
    rome = plain.run(CORRUPT).residual[LAST]
    mean = ablate(
        model, oracle, CLEAN, layers=[0, K], method="mean", reference=[CORRUPT], **asked
    )  # fmt: skip
    assert [(row["before"], row["after"]) for row in mean.rows()] == [
        ("Paris", "Paris"), ("Paris", "Rome"),
    ]  # fmt: skip
    assert oracle.ask(rome, asked["question"]).text == "Rome"
    unit = plain.run(CLEAN).residual[LAST] - rome
    unit = unit / unit.norm()
    (row,) = ablate(
        model, oracle, CLEAN, layers=[K], method="project", direction=unit,
        choices=["Paris", "Rome", "Berlin"], **asked,
    ).rows()  # fmt: skip
    run = agrees(plain, row, "residual", K, None, at(LAST, lambda h: h - (h @ unit) * unit))
    own = oracle.ask(run.residual[LAST], asked["question"], choices=["Paris", "Rome", "Berlin"])
    assert (row["before"], row["after"]) == ("Paris", own.text) == ("Paris", "Rome")
    assert row["text_changed"]
    tone = ablate(
        model, oracle, CLEAN, layers=[K], method="mean", reference=[CORRUPT],
        **{**asked, "question": "What is the tone?"},
    )  # fmt: skip
    assert [(row["before"], row["after"]) for row in tone.rows()] == [("cheerful", "cheerful")]
