"""The NDIF fixtures for the figures of remote runs, and the options of test_speed.py."""

import pytest

from tests.ndif.conftest import by_path, ndif, server  # noqa: F401


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where test_speed.py runs: cpu or cuda")
    parser.addoption("--size", default="tiny", help="its verbalizer: tiny, pair, 12x512 or 8b")
    parser.addoption("--unpacked", action="store_true", help="do not pack its weights")
    parser.addoption("--batches", default="32", help="its batch sizes, as in 1,8,32,128")
    parser.addoption("--compiled", action="store_true", help="also time compiled steps")
