"""The report: the statistics by hand, and what it says in words."""

import json
from dataclasses import replace

import pytest
import torch

from nnsight_nla import Checkpoint, tiny
from nnsight_nla.doctor.report import (
    Diagnosis,
    Figures,
    Finding,
    Variant,
    advantage,
    shown,
    variant,
)


def figures(cosine=None, likelihood=-0.1, effect=1.0, proper=True, others=0.2) -> Figures:
    rows = 4
    each = torch.arange(rows) * 0.001  # Rows differ a little.
    return Figures(
        torch.full((rows,), proper),
        effect + each,
        likelihood + each,
        None if cosine is None else cosine + each,
        None if cosine is None else torch.full((rows,), others),
    )


def test_an_advantage_is_a_share_of_what_is_left_to_reconstruct():
    # Both reach 0.9 and 0.6 of cosine over 0.2: (0.9 - 0.2) / 0.8 - (0.6 - 0.2) / 0.8.
    assert advantage(figures(0.9), figures(0.6)) == pytest.approx(0.375)
    assert advantage(figures(0.6), figures(0.9)) == 0
    # In a family with a large shared mean the same share is a small difference.
    assert advantage(figures(0.99, others=0.96), figures(0.97, others=0.96)) == pytest.approx(
        0.5, abs=1e-4
    )
    # A row without a proper explanation carries nothing, whatever was reconstructed from it.
    assert advantage(figures(0.6), figures(0.9, proper=False)) == pytest.approx(0.5, abs=0.01)


def test_a_difference_inside_its_noise_is_none():
    noisy = figures(0.6)
    swings = torch.tensor([0.4, -0.4, 0.5, -0.2])
    swinging = replace(noisy, cosine=noisy.cosine + swings)
    assert (swings.mean() / 0.8).item() > 0.05  # Above the least that counts.
    assert advantage(swinging, noisy) == 0


def test_without_a_reconstructor_a_sure_text_must_still_depend_on_the_vector():
    assert advantage(figures(likelihood=-0.01), figures(likelihood=-0.1)) == pytest.approx(0.09)
    assert advantage(figures(likelihood=-0.01, effect=0.0), figures(likelihood=-0.1)) == 0
    assert advantage(figures(likelihood=-0.01, effect=0.4), figures(likelihood=-0.1)) == 0
    assert advantage(figures(likelihood=-0.01, proper=False), figures(likelihood=-0.1)) == 0


def test_a_variants_record():
    shown = variant("block 3", figures(0.8), declared=True)
    assert shown.cosine == pytest.approx(0.8015)
    assert (shown.extraction, shown.declared) == (1.0, True)
    assert variant("block 3", figures(0.8, proper=False)).cosine == 0
    assert variant("block 9", "no such block") == Variant("block 9", False, error="no such block")


def test_a_variant_with_a_missing_reconstruction_has_no_evidence():
    assert figures().evidence is None
    assert variant("block 3", figures()).cosine is None
    # One of the two without reconstructions: the likelihoods are compared.
    assert advantage(figures(0.9, likelihood=-0.1), figures(likelihood=-0.1)) == 0


@pytest.mark.parametrize(
    ("effect", "reads"),
    [
        ([0.06, 0.06, 0.06, 0.06], True),
        ([0.04, 0.04, 0.04, 0.04], False),  # Below the smallest effect that counts.
        ([1.0, -0.9, 1.0, -0.9], False),  # A mean of 0.05, well within its noise.
        ([0.06], True),
    ],
)
def test_a_verbalizer_reads_its_vector_if_the_effect_exceeds_its_noise(effect, reads):
    rows = torch.tensor(effect)
    assert Figures(torch.ones(len(rows), dtype=torch.bool), rows, rows).reads is reads


DECLARED = Variant("block 3", True, 1.0, 0.5, 0.25)
OTHER = Variant("block 2", False, 1.0, 0.5, 0.75)
LOST = Finding("layer", "loses", (DECLARED, OTHER), "block 2")


def diagnosis(*findings: Finding, broken=(), reads=True, checkpoint=None) -> Diagnosis:
    return Diagnosis(findings, broken, checkpoint, reads, 4)


def test_the_conclusion_names_what_loses_and_what_the_evidence_supports():
    found = diagnosis(LOST, broken=("layer",))
    assert not found.ok
    assert found.conclusion == "The declared layer loses; the evidence supports block 2."


def test_a_loss_that_another_setting_explains_is_left_out():
    mode = Finding("injection mode", "loses", (DECLARED,), "replace at the embedding")
    found = diagnosis(mode, LOST, broken=("layer",))
    assert found.conclusion == "The declared layer loses; the evidence supports block 2."


def test_a_sound_checkpoint():
    found = diagnosis(Finding("layer", "supported", (DECLARED,)))
    assert found.ok
    assert found.conclusion == "No alternative is better than the declared settings."


def test_texts_that_do_not_depend_on_the_vector():
    nothing = "The texts do not depend on the vector with any of the settings that were tried: "
    found = diagnosis(reads=False)
    assert not found.ok
    assert found.conclusion.startswith(nothing)
    both = diagnosis(LOST, broken=("layer",), reads=False).conclusion
    assert both.startswith(f"The declared layer loses; the evidence supports block 2. {nothing}")


def test_a_setting_that_fails_is_the_whole_conclusion():
    failed = Finding("marker", "fails", note="It is two tokens.")
    found = diagnosis(failed, broken=("marker",), reads=False)
    assert found.conclusion == "The marker cannot be used: It is two tokens."


def test_printed_it_is_a_line_per_variant_and_the_conclusion():
    unrun = Variant("block 9", False, error="no such block")
    lines = str(diagnosis(replace(LOST, variants=(DECLARED, OTHER, unrun)))).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["layer", "declared", "block", "3", "1.00", "0.50", "0.25", "loses"],
        ["layer", "block", "2", "1.00", "0.50", "0.75"],
        ["layer", "block", "9", "–", "–", "–", "no", "such", "block"],
    ]
    assert lines[3] == "No alternative is better than the declared settings."
    assert (shown(None), shown(0.125)) == ("–", "0.12")


def test_it_is_plain_data():
    checkpoint = Checkpoint.load(tiny.paths()["av"])
    found = diagnosis(LOST, broken=("layer",), checkpoint=checkpoint).to_dict()
    json.dumps(found, allow_nan=False)
    assert (found["ok"], found["broken"]) == (False, ("layer",))
    assert found["findings"][0]["variants"][1]["value"] == "block 2"
    assert found["checkpoint"]["layer"] == checkpoint.layer
    assert diagnosis().to_dict()["checkpoint"] is None
