"""Each architecture of the table runs on vLLM, and says what the default engine says."""

import pytest

from . import architectures


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text", "gpt2", "phi3"])
def test_a_random_model_says_the_same_on_both_engines(kind, tmp_path):
    architectures.save(tmp_path, kind)
    found = architectures.compare(tmp_path, "block")
    assert found.equal == architectures.COUNT
    assert found.different > 5
    assert found.worst > 0.999
