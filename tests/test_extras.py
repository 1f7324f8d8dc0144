"""The package runs without its extras, and says what to install when one is needed."""

import json
import subprocess
import sys
import textwrap

import pytest

# A module whose entry is None cannot be imported, nor be found.
WITHOUT = "import sys\nfor name in {names}: sys.modules[name] = None\n"


def run_without(names: tuple[str, ...], script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process in which `names` are not installed."""
    code = WITHOUT.format(names=names) + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )


def test_reading_explaining_and_patching_need_no_extra(tmp_path):
    script = tmp_path / "session.py"
    script.write_text(
        WITHOUT.format(names=("transformer_lens", "peft", "datasets", "tensorboard"))
        + textwrap.dedent("""
            from nnsight_nla import tiny
            from nnsight_nla.experiments import patch, logit_difference

            model, nla = tiny.load()
            with model.trace("People in Paris speak"):
                thought = nla.explain(nla.layer(model).output[0, -1])
            print(thought.text)
            print(nla.read(model, "People in Paris speak").explanations[-1])
            sweep = patch(
                model, nla, clean="People in Paris speak", corrupt="People in Rome speak",
                layers=[0], positions=[2], metric=logit_difference(" French", " Italian"),
            )
            print(len(sweep.to_pandas()))
        """)
    )
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("About Paris, the capital of France") == 2


@pytest.mark.parametrize("how", ["NLA(base, peft=adapter)", "NLA.on(model, av=adapter)"])
def test_an_adapter_without_peft_says_what_to_install(how, tmp_path):
    from nnsight_nla import tiny

    paths = tiny.paths()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(paths["target"])}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    (tmp_path / "nla_meta.yaml").write_text((paths["av"] / "nla_meta.yaml").read_text("utf-8"))
    ran = run_without(
        ("peft",),
        f"""
        from nnsight import TransformersModel
        from nnsight_nla import NLA, CheckpointError
        base, adapter = {str(paths["target"])!r}, {str(tmp_path)!r}
        model = TransformersModel(base, task="text-generation")
        try:
            {how}
        except CheckpointError as error:
            print(error)
        """,
    )
    assert ran.returncode == 0, ran.stderr
    assert "needs the package peft" in ran.stdout
    assert "pip install 'nnsight-nla[adapters]'" in ran.stdout
