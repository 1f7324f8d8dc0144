"""The widget carries the messages of each of its views to the session and back."""

import sys

import pytest

from nnsight_nla import NLAError, live
from nnsight_nla.live import widget
from tests.live.conftest import PARIS, Page, of


@pytest.fixture
def shown(pair, monkeypatch):
    made = live.view(*pair, PARIS)
    pages = {}

    def send(content):
        pages[content["view"]].append(content["message"])

    monkeypatch.setattr(made, "send", send)
    yield made, pages
    made.close()


def say(made, view, message):
    made._handle_custom_msg({"view": view, "message": message}, [])


def test_each_view_is_a_client_of_its_own(shown):
    made, pages = shown
    pages.update(one=[], other=[])
    say(made, "one", None)
    say(made, "other", None)
    page = Page(made.session)
    say(made, "one", {"type": "explain", "id": 1, "run": 0, "positions": [2]})
    while made.session._open:
        pass
    page.client.close()
    assert [each["type"] for each in pages["one"]][:2] == ["run", "queued"]
    assert pages["one"][-1] == {"type": "done", "id": 1}
    assert {each["type"] for each in pages["other"]} == {"run", "text", "token"}
    assert "Paris" in of("token", pages["other"])[0]["token"]["x"]


def test_a_view_that_is_gone_gets_nothing_more(shown):
    made, pages = shown
    pages.update(one=[], other=[])
    say(made, "one", None)
    say(made, "one", "bye")
    say(made, "one", "bye")
    say(made, "one", {"type": "open", "id": 1, "text": "nobody hears it"})
    say(made, "other", None)
    say(made, "other", {"type": "open", "id": 1, "text": "The cow"})
    while made.session._open:
        pass
    assert len(of("run", pages["one"])) == 1
    assert len(of("run", pages["other"])) == 2


@pytest.mark.parametrize(
    "content", [None, [], "text", {}, {"view": 3}, {"view": "x", "message": 1}]
)
def test_what_is_no_message_changes_nothing(shown, content):
    made, _ = shown
    made._handle_custom_msg(content, [])
    assert made.session._clients == []


def test_its_script_is_a_module_that_loads_nothing(shown):
    made, _ = shown
    assert made._esm.count("export default") == 1
    assert "import " not in made._esm.replace("important", "")
    assert "://" not in made._esm
    assert len(made._esm) + len(made.style) < 100_000


def test_a_prompt_that_cannot_be_read_ends_the_session(pair):
    import threading

    with pytest.raises(NLAError, match="was built for"):
        live.view(*pair, "word " * 3000)
    assert not any(each.name == "nnsight-nla view" and each.is_alive() and not each.daemon
                   for each in threading.enumerate())  # fmt: skip


def test_without_anywidget_it_says_what_to_install(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    widget._kind.cache_clear()
    with pytest.raises(NLAError, match=r"anywidget: pip install 'nnsight-nla\[view\]'"):
        live.view(*pair, PARIS)
    monkeypatch.undo()
    widget._kind.cache_clear()
