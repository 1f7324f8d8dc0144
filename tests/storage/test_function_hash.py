"""A function is known by what it does, whatever it is called and wherever it lies."""

import functools
import importlib
import itertools
import operator
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from nnsight_nla.storage.function_hash import fingerprint_function

BASE = """
    import mine_too
    from collections import OrderedDict

    PROMPT = "Say what {} is about."
    EXAMPLES = ["one", {"two": 2}]
    VOCABULARY = {"a", "b", "c", "d"}

    def helper(text):
        return PROMPT.format(text)

    class Client:
        model = "large"

        def __init__(self, heat=0.5):
            self.heat, self.calls = heat, 0

        def ask(self, text):
            self.calls += 1
            return f"{self.model}: {text}"

    client = Client()

    def label(row, lead="A", *, end="."):
        return lead + helper(row["text"]) + client.ask(EXAMPLES[0]) + mine_too.close(end)
"""
OTHER = "def close(end):\n    return end\n"
SAME = {
    "a comment": ("return PROMPT", "# Fill it in.\n        return PROMPT"),
    "lines further down": ("\n    def label", "\n\n\n    def label"),
    "something it does not use": ('VOCABULARY = {"a"', 'VOCABULARY = {"e"'),
    "a docstring": ("row[", 'row["text"] and row[') and ('end="."):', 'end="."):\n        "Doc."'),
}
DIFFERENT = {
    "its code": ("lead + helper", "helper"),
    "a constant of it": ('row["text"]', 'row["token"]'),
    "a global text": ("Say what", "Tell what"),
    "a global list": ('["one"', '["ONE"'),
    "inside a global list": ('"two": 2', '"two": 3'),
    "a function that it calls": ("PROMPT.format(text)", "PROMPT.format(text).upper()"),
    "a method that it calls": ('f"{self.model}: {text}"', 'f"{self.model}, {text}"'),
    "an attribute of a class": ('model = "large"', 'model = "small"'),
    "an attribute of an object": ("client = Client()", "client = Client(0.7)"),
    "a default": ('lead="A"', 'lead="B"'),
    "a keyword's default": ('end="."', 'end="!"'),
}


def loaded(folder, monkeypatch, source, other=OTHER):
    """The function `label` of a module of the user's own, freshly imported."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (folder / "mine.py").write_text(textwrap.dedent(source))
    (folder / "mine_too.py").write_text(other)
    for name in ("mine", "mine_too"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return importlib.import_module("mine").label


@pytest.mark.parametrize("edit", SAME)
def test_what_does_not_change_a_label(tmp_path, monkeypatch, edit):
    old, new = SAME[edit]
    assert old in BASE
    before = fingerprint_function(loaded(tmp_path, monkeypatch, BASE), stateful=True)
    edited = loaded(tmp_path, monkeypatch, BASE.replace(old, new))
    assert fingerprint_function(edited, stateful=True) == before


@pytest.mark.parametrize("edit", DIFFERENT)
def test_what_changes_a_label(tmp_path, monkeypatch, edit):
    old, new = DIFFERENT[edit]
    assert old in BASE
    before = fingerprint_function(loaded(tmp_path, monkeypatch, BASE), stateful=True)
    edited = loaded(tmp_path, monkeypatch, BASE.replace(old, new))
    assert fingerprint_function(edited, stateful=True) != before


def test_an_edited_module_that_it_uses_is_named(tmp_path, monkeypatch):
    before = fingerprint_function(loaded(tmp_path, monkeypatch, BASE), stateful=True)
    edited = loaded(tmp_path, monkeypatch, BASE, OTHER.replace("return end", "return end * 2"))
    after = fingerprint_function(edited, stateful=True)
    changed = {name for name in after["uses"] if after["uses"][name] != before["uses"][name]}
    assert changed == {"mine_too"}
    assert before["name"] == "mine:label"
    assert after["code"] == before["code"]


def test_it_is_the_same_in_another_process(tmp_path, monkeypatch):
    """The order of a set is not: it depends on a secret of the process."""
    source = BASE.replace("EXAMPLES[0]", "str(lead in {'a', 'b', 'c'}) + str(VOCABULARY)")
    here = fingerprint_function(loaded(tmp_path, monkeypatch, source), stateful=True)
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import mine\n"
        "from nnsight_nla.storage.function_hash import fingerprint_function\n"
        "print(fingerprint_function(mine.label, stateful=True))"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        ran = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        assert ran.stdout.strip() == str(here)


def test_state_of_a_function_that_may_have_some():
    seen, total = [], 0

    def count(row):
        nonlocal total
        total += 1
        seen.append(row)
        return "text"

    before = fingerprint_function(count, stateful=True)
    pure = fingerprint_function(count, stateful=False)
    count({})
    assert fingerprint_function(count, stateful=True) == before
    assert fingerprint_function(count, stateful=False) != pure

    class Counting:
        def __init__(self):
            self.calls, self.cache, self.prompt = 0, {}, "Say"

        def __call__(self, row):
            self.calls += 1
            self.cache[len(self.cache)] = row
            return self.prompt

    counting = Counting()
    before = fingerprint_function(counting, stateful=True)
    counting({})
    assert fingerprint_function(counting, stateful=True) == before
    counting.prompt = "Tell"
    assert fingerprint_function(counting, stateful=True) != before


def probing(content):
    return lambda logits: logits @ content if isinstance(content, torch.Tensor) else content


@pytest.mark.parametrize(
    "values",
    [
        [torch.ones(3), torch.zeros(3), torch.ones(3).bfloat16(), torch.ones(1, 3)],
        [torch.ones(3).numpy(), torch.zeros(3).numpy()],
        [[1, 2], [2, 1], (1, 2), {1, 2}, {1: 2}, None, 1.5, b"a", "a"],
        [torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)],
        [sum, max, operator.itemgetter(1), operator.itemgetter(2), "a".join, "b".join],
    ],
    ids=["tensors", "arrays", "plain", "modules", "builtins"],
)
def test_what_a_metric_closes_over(values):
    found = [fingerprint_function(probing(each), stateful=False) for each in values]
    for a, b in itertools.combinations(found, 2):
        assert a != b
    assert [fingerprint_function(probing(each), stateful=False) for each in values] == found


def test_wrappers_show_what_they_wrap():
    def one(row, scale=1):
        return row * scale

    def two(row, scale=1):
        return row + scale

    for wrap in (functools.lru_cache, functools.partial):
        first, again, other = (
            fingerprint_function(wrap(each), stateful=False) for each in (one, one, two)
        )
        assert first == again != other
    a, b = (functools.partial(one, scale=each) for each in (2, 3))
    assert fingerprint_function(a, stateful=False) != fingerprint_function(b, stateful=False)


def test_functions_that_call_each_other():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    assert fingerprint_function(even, stateful=True) == fingerprint_function(even, stateful=True)
    assert fingerprint_function(even, stateful=True) != fingerprint_function(odd, stateful=True)
