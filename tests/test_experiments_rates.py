"""What the experiments find on the pair's held-out texts, measured."""

import sys

import pytest

from nnsight_nla.tiny.interventions import rates


@pytest.mark.measured
def test_patching_and_ablating_the_subject(model, nla):
    found = rates(model, nla, pairs=40)
    sys.stdout.write(f"\n{found}\n")
    patch, ablate = found["patch"], found["ablate"]
    assert found["pairs"] == 40
    assert patch["0"]["both"] >= 0.9, "answer and explanation become the donor's"
    assert patch["last, K"]["both"] >= 0.9, "where the fact has moved to"
    assert patch["3"]["both"] <= 0.1, "where it no longer is"
    assert ablate["before"] >= 0.9
    assert ablate["subject"] <= 0.1, "an ablated subject is named no more"
