"""Every string of a file is text, in every view: markup in any field makes no element."""

import json
import re
from dataclasses import fields
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nnsight_nla import Sweep, view
from nnsight_nla.errors import ExperimentError, NLAError
from nnsight_nla.evaluation.claims import Claims
from nnsight_nla.evaluation.compare import Comparison
from nnsight_nla.evaluation.difference import difference
from nnsight_nla.experiments.records import Cell, Header
from nnsight_nla.reading.records import Reading, TokenReading
from nnsight_nla.view.table import table
from tests.experiments.test_sweep import by_hand
from tests.view.test_table import record

EVIL = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
OURS = {
    "table", "caption", "thead", "tbody", "tr", "th", "td", "div", "code", "br", "em", "b", "i",
    "del", "ins", "span", "hr", "mark", "s", "strong", "sup", "extra", "u",
}  # fmt: skip


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def harmless(html):
    """Check that markup in `html` is only of the kinds that our views make."""
    found = Tags(html)
    assert found.tags <= OURS
    assert found.attributes <= {"style", "scope", "dir", "title", "class"}


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from strings(each)


def tampered(tmp_path, name, *, header=None, cell=None, rows=None):
    """A sweep's file with something else in its description or in a column."""
    path = by_hand().to_parquet(tmp_path / name)
    held = pq.read_table(path)
    about = json.loads(held.schema.metadata[b"nnsight_nla.sweep"])
    about["header"] |= header or {}
    for each in about["cells"]:
        each |= cell or {}
    for column, change in (rows or {}).items():
        values = [change(value) for value in held[column].to_pylist()]
        place = held.schema.get_field_index(column)
        kind = held.schema.field(column).type
        held = held.set_column(place, column, pa.array(values, kind))
    note = {"nnsight_nla.sweep": json.dumps(about)}
    pq.write_table(held.replace_schema_metadata(note), path)
    return path


def views(sweep):
    yield sweep._repr_html_()
    for value in ("effect", "change"):
        yield from strings(json.loads(sweep.plot(value=value).to_json()))
        if any(cell.dose is not None for cell in sweep.cells):
            figure = sweep.plot(value=value, form="curves")
            yield from strings(json.loads(figure.to_json()))


TEXTS = {
    "experiment": {"header": {"experiment": EVIL}, "runs": True},
    "target": {"header": {"target": EVIL}},
    "metric": {"header": {"metric": EVIL}},
    "tokens": {"header": {"tokens": {"clean": [EVIL] * 4, "corrupt": [EVIL] * 4}}},
    "settings": {"header": {"settings": {EVIL: EVIL}}},
    "site": {"cell": {"site": EVIL}},
    "kind": {"cell": {"kind": EVIL}},
    "random kind": {"cell": {"kind": f"random {EVIL}", "dose": 2.0}},
    "answer": {"rows": {"answer": lambda value: EVIL}},
    "text": {"rows": {"text": lambda value: EVIL if value else None}},
    "error": {"rows": {"error": lambda value: EVIL, "text": lambda value: None}},
    "warnings": {"rows": {"warnings": lambda value: [EVIL]}},
}


@pytest.mark.parametrize("field", TEXTS)
def test_of_a_sweeps_file(tmp_path, field):
    given = dict(TEXTS[field])
    if given.pop("runs", False):  # Its baseline is then the clean run's, and any name is a run.
        given["rows"] = {"run": lambda name: EVIL if name == "corrupt" else name}
    sweep = Sweep.from_parquet(tampered(tmp_path, "sweep.parquet", **given))
    shown = list(views(sweep))
    assert len(shown) > 10
    for each in shown:
        harmless(each)
    str(sweep), repr(sweep)


def test_every_text_of_a_sweeps_file_is_tried():
    texts = {each.name for each in fields(Header) if "str" in str(each.type)}
    assert texts <= {*TEXTS, "settings"}
    texts = {each.name for each in fields(Cell) if each.type == "str"}
    assert texts <= set(TEXTS)


NUMBERS = {"k": EVIL, "own": EVIL, "positions": [EVIL]}


@pytest.mark.parametrize("field", NUMBERS)
def test_a_text_in_place_of_a_number_is_no_sweep(tmp_path, field):
    path = tampered(tmp_path, "sweep.parquet", header={field: NUMBERS[field]})
    with pytest.raises(ExperimentError, match=rf"not as sweep.to_parquet\(\) writes it .*{field}"):
        Sweep.from_parquet(path)


@pytest.mark.parametrize("field", ["layer", "head", "position", "source", "dose"])
def test_a_cell_with_a_text_in_place_of_a_number_is_no_sweep(tmp_path, field):
    path = tampered(tmp_path, "sweep.parquet", cell={field: EVIL})
    with pytest.raises(ExperimentError, match=f"its {field} is"):
        Sweep.from_parquet(path)


@pytest.mark.parametrize(
    "header", [{"tokens": None}, {"experiment": None}, {"unknown": 1}, {"positions": 3}]
)
def test_a_description_of_another_form_is_no_sweep(tmp_path, header):
    path = tampered(tmp_path, "sweep.parquet", header=header)
    with pytest.raises(ExperimentError, match=r"not as sweep\.to_parquet"):
        Sweep.from_parquet(path)


def test_of_a_readings_file(tmp_path):
    evil = TokenReading(
        0, EVIL, EVIL, EVIL, 1.0, 0.5, 0.5, EVIL, EVIL, (EVIL,), None
    )  # fmt: skip
    failed = TokenReading(1, EVIL, EVIL, None, 1.0, error=EVIL)
    path = tmp_path / "reading.parquet"
    Reading((evil, failed), EVIL, EVIL, 3).to_parquet(path)
    reading = Reading.from_parquet(path)
    page = reading.to_html(
        tmp_path / "page.html", beside=reading, labels=(EVIL, EVIL), title=EVIL
    ).read_text("utf-8")
    assert "<img" not in page
    assert page.count("<script") == 2, "its own: the data and the code"
    assert "<img" not in re.sub("&lt;", "", reading._repr_html_())
    held = pq.read_table(path)
    note = json.loads(held.schema.metadata[b"nnsight_nla.reading"]) | {"layer": EVIL}
    pq.write_table(held.replace_schema_metadata({"nnsight_nla.reading": json.dumps(note)}), path)
    with pytest.raises(NLAError, match="its layer is"):
        Reading.from_parquet(path)


def test_of_a_handle_a_claim_and_a_comparison():
    evil = record(index=[EVIL], token=EVIL, position=EVIL, text=EVIL, warnings=[EVIL])
    harmless(view.explanation([{**evil, "trust": EVIL}]))
    harmless(view.explanation([record(error=EVIL, text=None)]))
    claims = {"cosine": 0.5, "parts": [{"text": EVIL, "carries": 0.1, "alone": 0.2}]}
    harmless(view.claims(claims))
    assert Claims is not None
    pairs = [difference(EVIL, f"{EVIL} b", cosine=1.0), difference(None, EVIL, error=EVIL)]
    harmless(Comparison(pairs, (2,))._repr_html_())


def test_a_cell_is_text_unless_we_made_it():
    """The table is where HTML is put together, so no caller can forget to escape."""
    harmless(table([EVIL], [[EVIL, EVIL]], caption=EVIL))
