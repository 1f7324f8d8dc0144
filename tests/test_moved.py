"""Module paths from before the folders still work, and warn."""

import importlib
import subprocess
import sys

import pytest

import nnsight_nla
from nnsight_nla._moved import MOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_path_gives_the_new_module_and_warns(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]}") as seen:
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])
    assert module.__name__ == MOVED[old]
    assert module.__spec__.name == MOVED[old]
    assert len(seen) == 1
    sys.modules.pop(old, None)


def test_an_old_name_is_also_an_attribute_of_the_package():
    vars(nnsight_nla).pop("injection", None)
    with pytest.warns(DeprecationWarning, match="nnsight_nla.core.injection"):
        old = nnsight_nla.injection
    assert "add" in old.OPERATIONS
    del nnsight_nla.injection
    sys.modules.pop("nnsight_nla.injection", None)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = nnsight_nla.no_such_name


def test_the_warning_points_at_the_line_of_the_import(tmp_path):
    script = tmp_path / "theirs.py"
    script.write_text("import nnsight_nla\n\nfrom nnsight_nla.scoring import cosine\n")
    ran = subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning:__main__", str(script)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "theirs.py:3: DeprecationWarning: nnsight_nla.scoring is now" in ran.stderr
