"""Makes the virtual environment of the vLLM tests: `python -m tests.vllm.install`.

vLLM pins PyTorch and caps transformers, so it lives apart from the project's own environment; see
`tests/helpers/environments.py`. Running this again only installs the clone itself anew (its entry
points; the code is read from the folder that pytest is started in).
"""

from pathlib import Path

from tests.helpers.environments import Environment, main

_CLONE = Path(__file__).resolve().parents[2]
_REQUIREMENTS = Path(__file__).resolve().with_name("requirements.txt")
# vLLM installs them, but they fail to import with this PyTorch and break transformers' Trainer.
_BROKEN = ("torchvision", "torchaudio", "torchcodec")
# The project's own.
_NOT_OURS = ("PIP_CONSTRAINT",)

VLLM = Environment("vllm", [_REQUIREMENTS])


def install() -> Path:
    """Make the environment if it is not there, install the clone, and return the folder.

    Raises:
        InstallError: The folder holds something else.
        subprocess.CalledProcessError: If pip failed; it wrote why.
    """
    with VLLM.alone():
        VLLM.make(_fill)
        clone = [f"{_CLONE}[adapters,judge]", "-c", str(_REQUIREMENTS)]
        VLLM.pip("install", "-q", "--no-build-isolation", "-e", *clone, without=_NOT_OURS)
    return VLLM.folder


def _fill() -> None:
    asked = ["--progress-bar=off", "-r", str(_REQUIREMENTS)]
    VLLM.pip("install", *asked, without=_NOT_OURS)
    VLLM.pip("uninstall", "-y", *_BROKEN)


if __name__ == "__main__":
    main(install)
