"""A figure that is shown as zero has no sign: every fixed format has ``z``."""

import ast
import re
from pathlib import Path

import pytest

import nnsight_nla

SOURCES = sorted(Path(nnsight_nla.__file__).parent.rglob("*.py"))
SIGNED_ZERO = re.compile(r"[+\-]?[<>^]?\d*,?\.[2-9]f")


def without_z(tree):
    """Lines of the formats with two or more decimals that write -0.00."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.FormattedValue)
        and node.format_spec is not None
        and SIGNED_ZERO.fullmatch(ast.unparse(node.format_spec)[2:-1])
    ]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_zero_has_no_sign(file):
    assert without_z(ast.parse(file.read_text("utf-8"))) == []


def test_what_the_test_finds():
    code = 'f"{a:.2f} {a:+.3f} {a:8.3f} {a:>9.3f}"; f"{a:z.2f} {a:+z.3f} {a:.0f} {a:.3g} {a}"'
    assert without_z(ast.parse(code)) == [1] * 4
