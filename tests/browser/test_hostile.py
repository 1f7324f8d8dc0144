"""Text that tries to be more than text: nothing runs, nothing leaves, nothing hides."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import expect

from nnsight_nla.reading.records import Reading, TokenReading

from .conftest import Watched, made

HOSTILE = [
    "</script><script>window.pwned=1</script>",
    "<img src=http://127.0.0.1:9/leak onerror=window.pwned=1>",
    "<!--<script>", "--><script>window.pwned=1</script>", "]]><svg onload=window.pwned=1>",
    "</title></style><iframe src=javascript:parent.pwned=1></iframe>",
    "&lt;b&gt; &amp;lt; &#x3c;script&#x3e;", "\" autofocus onfocus=window.pwned=1 x=\"",
    "</noscript><script>window.pwned=1</script>", "{{ 7*7 }} {% raw %} ${7*7} `7`",
    "javascript:alert(1)", "a\u202eb\u202cc",
    "zero\u200bwidth\ufeff\u2060", "nul\x00bell\x07\x1b[31m",
    "line\u2028sep\u2029par", "\ud800 lone", "__proto__", "constructor",
    "<explanation>nested</explanation>", "\U000e0041\U000e0042 tags", "שלום עולם", "مرحبا",
    "Z\u0300\u0301\u0302\u0303\u0304\u0305", "👩‍👩‍👧",
]  # fmt: skip


def hostile() -> Reading:
    records = tuple(
        TokenReading(
            place,
            text,
            part=text[:30] if place % 2 else "prompt",
            explanation=f"{text}\n\nand {text}",
            norm=1.0,
            grade=text[:30],
            trust=text,
            warnings=(text,),
            whole=text if place % 3 else None,
            next_tokens=(text, "a"),
            next_probabilities=(0.5, 0.25),
            against=text,
            fve=0.5,
            denominator=text,
        )
        for place, text in enumerate(HOSTILE)
    )
    receipt = tuple((text, text) for text in HOSTILE)
    return Reading(records, HOSTILE[0], HOSTILE[1], 3, receipt, HOSTILE[7])


def test_nothing_runs_and_nothing_leaves(show):
    reading = hostile()
    page = show(reading, beside=reading, labels=(HOSTILE[0], HOSTILE[1]), title=HOSTILE[5])
    for place in range(len(HOSTILE)):
        page.hover(f"#t0-{place}")
        page.click(f"#t1-{place}")
    for text in ("<", "script", "\u202e", "pwned", "{{", "["):
        page.fill("#query", text)
        page.keyboard.press("Enter")
    for opened in page.locator("#details summary").all():
        opened.click()
    assert page.locator("#table table").count() == 2
    assert page.evaluate("window.pwned") is None
    assert page.locator("img, iframe, svg, script:not([id]):nth-of-type(3)").count() == 0
    assert page.locator("script").count() == 2
    assert page.get_by_role("option").count() == 2 * len(HOSTILE)


def test_in_a_notebook_too(context, tmp_path):
    page = context.new_page()
    watched = Watched(page).watch()
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><body>{hostile()._repr_html_()}", "utf-8")
    page.goto(notebook.as_uri())
    page.frame_locator("iframe").locator("#t0-1").hover()
    assert page.evaluate("window.pwned") is None
    assert page.frames[1].evaluate("window.pwned") is None
    assert watched.outside == []
    assert watched.complaints == []


def test_without_scripts_too(browser, tmp_path):
    context = browser.new_context(java_script_enabled=False)
    watched = Watched(context.new_page()).watch()
    watched.page.goto(hostile().to_html(tmp_path / "plain.html").as_uri())
    expect(watched.page.locator("tbody tr")).to_have_count(len(HOSTILE))
    assert watched.page.locator("img, iframe, svg").count() == 0
    assert watched.outside == []
    context.close()


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """The address of a server on this machine, and what it was asked for."""
    asked: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.mark.parametrize("policy", [True, False])
def test_a_hole_in_the_escaping_would_have_nothing_to_run(context, tmp_path, listener, policy):
    address, asked = listener
    hole = (
        "<script>window.pwned=1</script><svg onload=window.pwned=1></svg>"
        f"<img src={address}/image><link rel=stylesheet href={address}/style>"
        f"<script>fetch('{address}/fetch')</script>"
    )
    path = tmp_path / "hole.html"
    made(["a"], lambda place, word: word).to_html(path)
    html = path.read_text("utf-8").replace("<body>", f"<body>{hole}")
    if not policy:  # The same hole without the policy: this is what the tests above would see.
        start = html.index('<meta http-equiv="Content-Security-Policy"')
        html = html[:start] + html[html.index("\n", start) :]
    path.write_text(html, "utf-8")
    watched = Watched(context.new_page()).watch()
    watched.page.goto(path.as_uri())
    expect(watched.page.locator("#details")).to_contain_text("a")
    assert (watched.page.evaluate("window.pwned") is None) is policy
    watched.page.wait_for_timeout(300)
    assert sorted(asked) == ([] if policy else ["/fetch", "/image", "/style"])


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("a\u202eb", "a\\u202eb"),
        ("\u200b", "\\u200b"),
        ("\u2028", "\\u2028"),
        ("\x00", "\\u0000"),
        ("\U000e0041", "\\ue0041"),
        ("", "∅"),
        (" שלום", "␣שלום"),
    ],
)
def test_a_token_hides_nothing_and_turns_nothing_round(show, token, shown):
    page = show(made(["before", token, "after"], lambda place, word: f"says {word} here"))
    chips = [page.locator(f"#t0-{i}") for i in range(3)]
    assert chips[1].inner_text() == shown
    left = [chip.bounding_box()["x"] for chip in chips]
    assert left == sorted(left)
    page.hover("#t0-1")
    expect(page.locator("#details .token")).to_have_text(shown)


def test_an_explanation_hides_nothing_either(show):
    page = show(made(["a"], lambda place, word: "left \u202etfel\u202c, zero\u200bwidth, 👩‍👧"))
    said = page.locator("#details .said")
    expect(said).to_contain_text("left \\u202etfel\\u202c, zero\\u200bwidth, 👩‍👧")


def test_a_megabyte_in_a_token_and_in_an_explanation(show, tmp_path):
    huge = "x<" * 524_288
    reading = made(["a", huge, "b"], lambda place, word: word * 2)
    page = show(reading)
    chip = page.locator("#t0-1")
    assert len(chip.inner_text()) < 300
    page.hover("#t0-1")
    expect(page.locator("#details")).to_contain_text("1,048,376 more characters")
    expect(page.locator("#details .said")).to_contain_text("2,077,152 more characters")
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert reading.to_html(tmp_path / "x.html").stat().st_size < 400_000
    assert reading[1].token == huge
