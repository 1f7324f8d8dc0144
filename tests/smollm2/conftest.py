"""SmolLM2 and its NLA, loaded once; without the wheel, the tests that need them are skipped."""

import pytest

from nnsight_nla import smollm2
from nnsight_nla.smollm2 import target


@pytest.fixture(scope="session")
def smol():
    """The real model and its NLA."""
    if target.wheel_file() is None:
        pytest.skip(f"needs SmolLM2: {target.INSTALL}")
    return smollm2.load()
