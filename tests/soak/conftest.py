"""Count what the soak tests try, and write the counts into the documentation.

pytest tests/soak                   # runs them, about ten minutes; prints the table
pytest tests/soak --write-figures   # also rewrites tutorials/reference/soak.rst
"""

import threading
from pathlib import Path

import pytest
from tqdm import tqdm

PAGE = Path(__file__).parents[2] / "tutorials" / "reference" / "soak.rst"
HEADER = """\
Soak tests
==========

``pytest tests/soak`` repeats operations that must never lose data or return a wrong value:
processes killed at random times, threads that share a model, odd arguments, pickles, templates and
hostile texts. The seeds are fixed. All rows passed: a single loss or wrong value fails the run. The
table is written by ``pytest tests/soak --write-figures``.

.. list-table::
   :header-rows: 1
   :widths: 50 15 35

   * - operation
     - times
     - result
"""
_ROWS: dict[tuple[str, str], int] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-figures", action="store_true", help=f"rewrite {PAGE.name}")


# A fork that is killed while it draws a bar of transformers would keep tqdm's shared lock for ever.
tqdm.set_lock(threading.RLock())


@pytest.fixture
def figure():
    """Add a row to the table, or to its times, when everything that a test asserts is true."""

    def add(what: str, times: int, result: str) -> None:
        _ROWS[what, result] = _ROWS.get((what, result), 0) + times

    return add


def pytest_terminal_summary(terminalreporter) -> None:
    for (what, result), times in _ROWS.items():
        terminalreporter.write_line(f"{what}: {times:,}; {result}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.getoption("--write-figures") and exitstatus == 0:
        rows = "".join(
            f"   * - {what}\n     - {times:,}\n     - {result}\n"
            for (what, result), times in _ROWS.items()
        )
        PAGE.write_text(HEADER + rows, "utf-8")
