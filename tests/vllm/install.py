"""Makes the virtual environment of the vLLM tests: `python tests/vllm/install.py`.

vLLM pins PyTorch and caps transformers, so it lives apart from the project's own environment. It
is in the user's cache folder, named by a hash of the requirement file that it is made from, so a
change to that file makes a new one. Running this again only installs the clone itself anew (its
entry points; the code is read from the folder that pytest is started in).

One file in the folder, `nnsight-nla-vllm.txt`, says whose it is and how far it got: `unfinished`
from the first moment, the hash at the very end. A folder without that file is never touched.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_CLONE = _HERE.parent.parent
_REQUIREMENTS = _HERE / "requirements.txt"
# vLLM installs them, but they fail to import with this PyTorch and break transformers' Trainer.
_BROKEN = ("torchvision", "torchaudio", "torchcodec")
_MARK = "nnsight-nla-vllm.txt"
_UNFINISHED = "unfinished"

COMMAND = f"python {_HERE.parent.name}/{_HERE.name}/{Path(__file__).name}"


class InstallError(Exception):
    """The environment cannot be made; the message says what to do."""


def key() -> str:
    """The hash that names an environment: its requirement file and the Python it runs on."""
    version = f"python {sys.version_info.major}.{sys.version_info.minor}\n"
    return hashlib.sha256((version + _REQUIREMENTS.read_text()).encode()).hexdigest()[:12]


def folder() -> Path:
    """Where the environment is: `$NNSIGHT_NLA_VLLM_VENV`, or a folder in the user's cache."""
    if chosen := os.environ.get("NNSIGHT_NLA_VLLM_VENV"):
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "nnsight_nla" / f"vllm-{key()}"


def python() -> Path:
    """The environment's interpreter."""
    return folder() / "bin" / "python"


def installed() -> bool:
    """Whether the environment is complete."""
    return _progress(folder()) == key()


def install() -> Path:
    """Make the environment if it is not there, install the clone, and return the folder.

    Raises:
        InstallError: The folder holds something else.
        subprocess.CalledProcessError: If pip failed; it wrote why.
    """
    target = folder()
    with _one_at_a_time(target):
        if not installed():
            _clear(target)
            _build(target)
        _install_clone(target)
    return target


def _progress(target: Path) -> str | None:
    mark = target / _MARK
    return mark.read_text().strip() if mark.is_file() else None


@contextmanager
def _one_at_a_time(target: Path) -> Iterator[None]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _clear(target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        return
    if _progress(target) is None:
        raise InstallError(
            f"{target} holds something that this did not make: point NNSIGHT_NLA_VLLM_VENV at an "
            "empty or new folder."
        )
    shutil.rmtree(target)


def _build(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    mark = target / _MARK
    mark.write_text(_UNFINISHED)
    venv.create(target, with_pip=True)
    _pip(target, "install", "--progress-bar=off", "-r", str(_REQUIREMENTS))
    _pip(target, "uninstall", "-y", *_BROKEN)
    mark.write_text(key())


def _install_clone(target: Path) -> None:
    clone = f"{_CLONE}[adapters,judge]"
    constraints = ["-c", str(_REQUIREMENTS)]
    _pip(target, "install", "-q", "--no-build-isolation", *constraints, "-e", clone)


def _pip(target: Path, *command: str) -> None:
    # PIP_CONSTRAINT is the project's own environment's.
    own = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    subprocess.run(
        [str(target / "bin" / "python"), "-m", "pip", *command],
        check=True,
        env=own,
        stdout=sys.stderr,
    )


def main() -> None:
    """Install, and print the folder as the last line."""
    try:
        sys.stdout.write(f"{install()}\n")
    except InstallError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
