"""The clock of a chat template: what it prints, and what it notes."""

import datetime

import pytest

from nnsight_nla import CheckpointError
from nnsight_nla.checkpoint.dates import Clock, parse_date, to_iso


@pytest.mark.parametrize(
    ("format", "printed"),
    [
        ("%d %b %Y", "2026-11-26"),
        ("%A", "2026-11-26"),
        ("%Y", "2026-11-26"),
        ("%j", "2026-11-26"),
        ("%H:%M", "2026-11-26T09:30:00"),
        ("%c", "2026-11-26T09:30:00"),
        ("%f", "2026-11-26T09:30:00"),
        ("%%", None),
        ("no date", None),
    ],
)
def test_a_clock_notes_what_a_format_depends_on(format, printed):
    moment = datetime.datetime(2026, 11, 26, 9, 30)
    clock = Clock(moment)
    assert clock.printed is None
    assert clock.strftime(format) == moment.strftime(format)
    assert clock.printed == printed


def test_a_clock_stands_still_and_shows_now_by_default():
    before = datetime.datetime.now()
    clock = Clock(None)
    first = clock.strftime("%Y-%m-%dT%H:%M:%S.%f")
    assert before.isoformat(timespec="microseconds") <= first
    assert clock.strftime("%Y-%m-%dT%H:%M:%S.%f") == first


@pytest.mark.parametrize(
    "date", ["2026-11-26", datetime.date(2026, 11, 26), datetime.datetime(2026, 11, 26)]
)
def test_forms_of_a_date(date):
    assert parse_date(date) == datetime.datetime(2026, 11, 26)
    assert to_iso(date) == "2026-11-26"


def test_a_moment_keeps_its_time():
    assert to_iso("2026-11-26T09:30") == "2026-11-26T09:30:00"


@pytest.mark.parametrize("date", ["yesterday", "26.11.2026", "", 20261126, True, [], b"2026-11-26"])
def test_what_is_no_date(date):
    with pytest.raises(CheckpointError, match="expected a date such as '2026-11-26'"):
        parse_date(date)
