"""Every family that transformers has a causal language model for; run by name (.ci/run).

About 4 CPU-minutes. tests/models/test_families.py has one family of each shape in the default run.
"""

import pytest

from tests.models.test_families import check, needs_the_tables_version
from tutorials.reference import families


@needs_the_tables_version
@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_family_is_served_as_the_reference_says_or_refused(family):
    check(family)


def test_the_reference_lists_every_family_and_serves_most():
    text = families.TABLE.read_text("utf-8")
    served, _, refused = text.partition("Refused, or not built here")
    assert all(f"   * - {name}\n" in text for name in map(families.escaped, families.FAMILIES))
    assert served.count("   * - ") - 1 >= 150
    assert served.count("   * - ") + refused.count("   * - ") - 2 == len(families.FAMILIES)
