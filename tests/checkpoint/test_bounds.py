"""Files of a stranger: what they can cost is bounded, and so is what a message quotes of them."""

import json
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nnsight_nla import NLA, Checkpoint, CheckpointError, NLAError, tiny
from nnsight_nla.bulk.finished_file import read_sidecar
from nnsight_nla.checkpoint import sidecar
from nnsight_nla.core import time_limit as limits
from nnsight_nla.errors import shown
from nnsight_nla.models import hosts
from nnsight_nla.models.adapter import base_of
from tests.helpers.checkpoints import copied

PATHS = tiny.paths()
FILE = Path("nla_meta.yaml")
TEN = ",".join(["*a{}"] * 10)


def bomb(levels: int = 10, start: str = "[x,x,x,x,x,x,x,x,x,x]", around: str = "[{}]") -> str:
    """A few hundred bytes that stand for 10 ** levels values."""
    lines = [f"a0: &a0 {start}"]
    lines += [
        f"a{i}: &a{i} {around.format(TEN.replace('{}', str(i - 1)))}" for i in range(1, levels)
    ]
    return "\n".join(lines) + "\n"


HOSTILE = {
    "lists of lists": bomb(),
    "merge keys": bomb(start="{x: 1}", around="{{<<: [{}]}}"),
    "mappings": bomb(start="{x: 1}", around="{{k: [{}]}}"),
    "a list that contains itself": "a: &a [*a]",
    "a mapping that contains itself": "a: &a {b: *a}",
    "a long string many times": "s: &s "
    + "x" * 50_000
    + "\nmany: ["
    + ",".join(["*s"] * 100)
    + "]",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_aliases_are_measured_before_they_are_expanded(what):
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"^nla_meta\.yaml: its aliases expand to more than"):
        sidecar.parse(HOSTILE[what].encode(), FILE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


@pytest.mark.parametrize(
    "text",
    ["layer: 0x" + "f" * 5000, "layer: " + ":".join(["10"] * 50_000), "layer: " + "9" * 5000],
)
def test_numbers_of_thousands_of_digits(text):
    with pytest.raises(CheckpointError, match="is not readable as YAML: a number of"):
        sidecar.parse(text.encode(), FILE)


@pytest.mark.parametrize("name", ["nla_meta.yaml", "nla_meta.json"])
def test_a_large_file_is_not_read_to_its_end(tmp_path, name):
    file = tmp_path / name
    with file.open("wb") as opened:
        opened.truncate(1 << 40)  # A terabyte, of which nothing is on the disk.
    for read in (sidecar.read, lambda _: Checkpoint.load(tmp_path)):
        with pytest.raises(CheckpointError, match=r"is larger than 1,048,576 bytes"):
            read(file)


def test_every_reader_is_bounded(tmp_path):
    """One test per place that reads a file which may come with a checkpoint or a data set."""
    av = copied(PATHS["av"], tmp_path / "av")
    ar = copied(PATHS["ar"], tmp_path / "ar")
    lora = tmp_path / "lora"
    lora.mkdir()
    (tmp_path / "rows.parquet.nla_meta.yaml").write_text(bomb())
    (lora / "adapter_config.json").write_bytes(b" " * (sidecar.MOST + 1))
    for folder in (av, ar):
        (folder / "nla_meta.yaml").write_text(bomb())
    for read in (
        lambda: Checkpoint.load(av),
        lambda: NLA(PATHS["av"], ar=ar),
        lambda: NLA(PATHS["av"], checkpoint=av / "nla_meta.yaml"),
        lambda: base_of(lora),
        lambda: read_sidecar(tmp_path / "rows.parquet"),
    ):
        with pytest.raises(CheckpointError, match="than 1,048,576"):
            read()


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)


@given(TREES, st.booleans())
def test_what_is_bounded_reads_as_before(tree, twice):
    """Aliases are fine: PyYAML itself writes them for a list that occurs twice."""
    text = yaml.safe_dump([tree, tree] if twice else tree, allow_unicode=True)
    assert repr(sidecar.parse(text.encode(), FILE)) == repr(yaml.safe_load(text))


@given(TREES | st.integers(10**4400, 10**4500) | st.text(min_size=5000))
def test_a_message_quotes_a_value_shortly(value):
    assert len(shown(value)) < 20_000
    if isinstance(value, str | int | None):
        assert len(shown(value)) <= 1200


@pytest.mark.parametrize("key", ["kind", "schema_version", "d_model", "extraction", "tokens"])
def test_a_message_is_bounded_whatever_is_in_the_sidecar(tmp_path, key):
    tree = yaml.safe_load((PATHS["av"] / "nla_meta.yaml").read_text("utf-8"))
    huge = {"a": ["x" * 1000] * 300}
    tree[key] = dict.fromkeys(tree[key], huge) if isinstance(tree[key], dict) else huge
    (tmp_path / "nla_meta.json").write_text(json.dumps(tree), "utf-8")
    with pytest.raises(CheckpointError) as no:
        NLA(PATHS["av"], checkpoint=tmp_path / "nla_meta.json")
    assert len(str(no.value)) < 4000


def test_a_long_message_keeps_its_beginning_and_its_advice():
    said = str(NLAError(f"Something arrived: {'x' * 10**6}. Type this instead."))
    assert len(said) < 4000
    assert said.startswith("Something arrived: xxx")
    assert said.endswith("Type this instead.")
    assert str(NLAError("short")) == "short"
    assert NLAError("a", 3).args == ("a", 3)


class TestTemplates:
    LOOPS = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"

    @pytest.fixture
    def limit(self, monkeypatch):
        for module in ("nnsight_nla.checkpoint.prompt", "nnsight_nla.models.prompts"):
            monkeypatch.setattr(f"{module}.TEMPLATE_SECONDS", 0.3)

    def test_of_a_verbalizer(self, tmp_path, limit):
        folder = copied(PATHS["av"], tmp_path / "av")
        (folder / "chat_template.jinja").write_text(self.LOOPS)
        begin = time.monotonic()
        with pytest.raises(CheckpointError, match=r"does not render one user message: it ran for"):
            NLA(folder)
        assert time.monotonic() - begin < 60

    def test_of_a_target(self, model, limit, monkeypatch):
        monkeypatch.setattr(model.tokenizer, "chat_template", self.LOOPS)
        with pytest.raises(NLAError, match=r"^The chat template of .* does not end: it ran for"):
            hosts.positions(model, [[{"role": "user", "content": "Hi"}]])

    def test_in_another_thread_and_without_a_trace_left(self):
        errors = []

        def work():
            try:
                with limits.time_limit(0.1):
                    _forever()
            except TimeoutError as error:
                errors.append(str(error))
            errors.append(_forever(0))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert errors == ["it ran for more than 0.1 seconds", None]


def _forever(steps: float = float("inf")) -> None:
    while steps > 0:
        steps -= 1
