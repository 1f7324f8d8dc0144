"""``explain`` and ``read`` with ``--remote``: the texts are those of this machine."""

import json

import pytest
from typer.testing import CliRunner

from nnsight_nla import tiny
from nnsight_nla.cli import app

PATHS = tiny.paths()


pytestmark = pytest.mark.usefixtures("as_installed")


def told(*arguments):
    ran = CliRunner().invoke(app, [*arguments, "--json"])
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


@pytest.fixture
def there(ndif, by_path):
    names = {role: by_path(PATHS[role]) for role in ("av", "target")}
    return ["--av", names["av"], "--target", names["target"], "--remote"]


@pytest.mark.parametrize("layer", [[], ["--layer", "2", "--insist"]])
def test_explain_from_afar(there, layer):
    command = ["explain", "What a lovely day! People in Paris speak", "--position", "2,-1", *layer]
    found, expected = told(*command, *there), told(*command)
    assert found["layer"] == expected["layer"]
    for one, other in zip(found["explanations"], expected["explanations"], strict=True):
        assert (one["token"], one["text"]) == (other["token"], other["text"])


def test_read_from_afar(there):
    command = ["read", "The cow", "--generate", "2"]
    found, expected = told(*command, *there), told(*command)
    for one, other in zip(found["tokens"], expected["tokens"], strict=True):
        assert (one["token"], one["explanation"]) == (other["token"], other["explanation"])
