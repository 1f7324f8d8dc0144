"""The folder for what is computed once."""

from pathlib import Path

import pytest

from nnsight_nla.storage.cache import cache_folder


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"NNSIGHT_NLA_CACHE": "/a"}, "/a"),
        ({"NNSIGHT_NLA_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/nnsight_nla"),
        ({"NNSIGHT_NLA_CACHE": "", "XDG_CACHE_HOME": ""}, "~/.cache/nnsight_nla"),
    ],
)
def test_the_cache_is_the_users(monkeypatch, given, expected):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected).expanduser()
