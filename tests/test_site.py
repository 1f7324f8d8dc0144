"""What the site is made of: generated pages, the gallery, kept outputs, the link checker."""

import re
from pathlib import Path

import pytest
from typer.main import get_group

from nnsight_nla.cli import app
from tests.test_tutorials import SERIES, title
from tutorials.site import execution, generated, links

TUTORIALS = Path(__file__).parents[1] / "tutorials"


def test_every_command_has_a_page_with_every_option():
    pages = dict(generated.pages())
    for name, command in get_group(app).commands.items():
        file = name.replace(" ", "_")
        page = pages[f"commands/{file}.rst"]
        assert page.startswith(f"nnsight-nla {name}\n")
        for option in command.params:
            if option.param_type_name == "option" and "--help" not in option.opts:
                assert f".. option:: {option.opts[0]}" in page, (name, option.name)
        assert f"nnsight-nla {name} <{file}>" in pages["commands/index.rst"]


def test_examples_in_a_help_text_stay_as_they_stand():
    said = "Read `TEXT` with --html.\n\n\b\nnnsight-nla read 'a *b*'\nnnsight-nla read c"
    assert generated._text(said) == (
        "Read \\`TEXT\\` with ``--html``.\n\n.. code-block:: text\n\n"
        "   nnsight-nla read 'a *b*'\n   nnsight-nla read c\n"
    )


def test_the_gallery_is_the_series_with_a_picture_each():
    gallery = (TUTORIALS / "tutorials.rst").read_text("utf-8")
    figures = re.findall(
        r"figure:: thumbnails/(\w+)\.png\n +:target: (\w+)\.html\n +:alt: (.+)\n", gallery
    )
    assert figures == [(name, name, title(name)) for name in SERIES]
    assert gallery.split(":hidden:")[1].split() == SERIES
    for name in SERIES:
        assert (TUTORIALS / "thumbnails" / f"{name}.png").stat().st_size < 100_000


def test_a_comment_keeps_the_outputs_and_code_does_not(tmp_path):
    module = tmp_path / "module.py"
    contents = []
    for text in (
        '"""One."""\ndef f():\n    """Two."""\n    return 1\n',
        '"""Another."""\n\ndef f():\n    return 1  # why\n',
        '"""One."""\ndef f():\n    """Two."""\n    return 2\n',
    ):
        module.write_text(text, "utf-8")
        contents.append(execution._content(module))
    assert contents[0] == contents[1] != contents[2]


def test_the_oldest_outputs_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("NNSIGHT_NLA_CACHE", str(tmp_path))
    monkeypatch.setattr(execution, "KEPT", 2)
    found = []
    for name in ("a", "b", "c"):
        monkeypatch.setattr(execution, "state", lambda name=name: name)
        found.append(execution.cache())
    assert [path.is_dir() for path in found] == [False, True, True]


def test_only_notebooks_that_cannot_run_here_are_left_out(monkeypatch):
    monkeypatch.setattr(execution.target, "wheel_file", lambda: Path("there"))
    assert execution.not_executed() == ["remote.ipynb"]
    monkeypatch.setattr(execution.target, "wheel_file", lambda: None)
    assert len(execution.not_executed()) == 6


@pytest.mark.parametrize(
    ("link", "wrong"),
    [
        ("b.html", False), ("b.html#there", False), ("#here", False), ("https://x.org/y", False),
        ("c.html", True), ("b.html#gone", True), ("#gone", True),
    ],
)  # fmt: skip
def test_broken_links_are_found(tmp_path, link, wrong):
    (tmp_path / "a.html").write_text(f'<p id="here"><a href="{link}">x</a>', "utf-8")
    (tmp_path / "b.html").write_text('<h1 id="there">', "utf-8")
    assert list(links.broken(tmp_path)) == ([(Path("a.html"), link)] if wrong else [])


def test_stored_outputs_have_no_bars_paths_or_scripts():
    store = pytest.importorskip("tutorials.site.store")  # needs the dev extra
    printed = {
        "output_type": "stream",
        "name": "stdout",
        "text": "/x/nnsight_nla/tiny/weights/av\n",
    }
    bar = {"output_type": "stream", "name": "stderr", "text": "100%"}
    timed = {"output_type": "stream", "name": "stdout", "text": "5 rows (0.3 s)"}
    figure = {
        "output_type": "display_data",
        "data": {"text/html": '<div class="plotly-graph-div">', "text/plain": "Figure at 0x7f"},
    }
    begun = {"output_type": "display_data", "data": {"text/html": "<script>x</script>"}}
    assert store.stripped([printed, bar, timed, begun, figure], lambda _: "PNG") == [
        {
            "output_type": "stream",
            "name": "stdout",
            "text": "…/nnsight_nla/tiny/weights/av\n5 rows (… s)",
        },
        {
            "output_type": "display_data",
            "metadata": {},
            "data": {"image/png": "PNG", "text/plain": "Figure"},
        },
    ]


@pytest.mark.parametrize(
    ("stored", "fresh", "wrong"),
    [
        ("cosine 0.981", "cosine 0.979", False),
        ("loss 120.1", "loss 120.9", False),
        ("cosine 0.981", "cosine 0.901", True),
        ("About Paris.", "About Rome.", True),
        ("one", "one\ntwo", True),
        ("a    0.09881\nb  1.5", "a  0.0988\nb  1.5", False),  # a column is narrower
        (f"{'732beac53c81f7c12f7f' * 2}.parquet", f"{'684a802042a6833ad4c3' * 2}.parquet", False),
        ("0.24767139554023743", "0.91767139554023743", True),
        ("now 2026-11-28, so", "now 2027-01-02, so", False),
    ],
)
def test_outputs_that_differ_in_more_than_a_last_digit_are_found(stored, fresh, wrong):
    store = pytest.importorskip("tutorials.site.store")

    def printed(text):
        return [{"output_type": "stream", "name": "stdout", "text": text}]

    assert store.differs(printed(stored), printed(fresh)) is wrong


def test_of_a_cell_that_draws_only_the_kinds_of_outputs_are_compared():
    store = pytest.importorskip("tutorials.site.store")
    one, other = ([{"output_type": "stream", "name": "stdout", "text": text}] for text in "ab")
    table = [{"output_type": "display_data", "data": {"text/plain": "a"}}]
    assert store.differs(one, other)
    assert not store.differs(one, other, random=True)
    assert store.differs(one, table, random=True)
    assert store.differs(one, [], random=True)
