"""Makes the virtual environment of the loopback NDIF server: `python tests/ndif/install.py`.

The server lives apart from the project: it needs Ray, Redis and a web server, which no user of
`nnsight_nla` needs, and the tests must show that it does *not* have `nnsight_nla`. The environment
stands in the user's cache folder, named by a hash of the requirement files it is made from, so a
change of those makes a new one, and running this twice does nothing the second time.

One file in the folder, `nnsight-nla-ndif.txt`, says whose it is and how far it got: `unfinished`
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
_REQUIREMENTS = _HERE / "requirements.txt"
_NO_DEPENDENCIES = _HERE / "requirements-no-deps.txt"
_CONSTRAINTS = _HERE / "constraints.txt"
_MARK = "nnsight-nla-ndif.txt"
_UNFINISHED = "unfinished"

COMMAND = f"python {_HERE.parent.name}/{_HERE.name}/{Path(__file__).name}"


class InstallError(Exception):
    """The environment cannot be made; the message says what to do."""


def key() -> str:
    """The hash that names an environment: its requirement files and the Python it runs on."""
    version = f"python {sys.version_info.major}.{sys.version_info.minor}\n"
    texts = [path.read_text() for path in (_REQUIREMENTS, _NO_DEPENDENCIES, _CONSTRAINTS)]
    return hashlib.sha256("".join([version, *texts]).encode()).hexdigest()[:12]


def folder() -> Path:
    """Where the environment is: `$NNSIGHT_NLA_NDIF_VENV`, or a folder in the user's cache."""
    if chosen := os.environ.get("NNSIGHT_NLA_NDIF_VENV"):
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "nnsight_nla" / f"ndif-{key()}"


def python() -> Path:
    """The environment's interpreter."""
    return folder() / "bin" / "python"


def missing() -> str | None:
    """What keeps the server from starting, in one line that says how to get it; None if nothing."""
    if _progress(folder()) != key():
        return f"the NDIF server's environment is not installed: run `{COMMAND}`"
    if shutil.which("redis-server") is None:
        return f"redis-server is not installed: run `{COMMAND}` as root, or install it by hand"
    return None


def install() -> Path:
    """Make the environment if it is not there, and return its folder.

    Raises:
        InstallError: If redis-server cannot be installed, or the folder holds something else.
        subprocess.CalledProcessError: If pip or apt-get failed; both wrote why.
    """
    target = folder()
    with _one_at_a_time(target):
        _install_redis()
        if _progress(target) != key():
            _clear(target)
            _build(target)
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


def _install_redis() -> None:
    if shutil.which("redis-server"):
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise InstallError(
            "redis-server is not installed, and this is not root on a Debian: install the package "
            "`redis-server` by hand (`sudo apt-get install redis-server`), then run this again."
        )
    # policy-rc.d answers 101, "forbidden": Debian must not start a Redis of its own on port 6379.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        # One at a time: apt-get fails while another one runs, and .ci/run installs Chromium.
        apt = ["flock", "/tmp/nnsight-nla-apt.lock", "apt-get", "-q"]
        subprocess.run([*apt, "update"], check=True, env=environment)
        install = [*apt, "install", "-y", "--no-install-recommends", "redis-server"]
        subprocess.run(install, check=True, env=environment)
    finally:
        if ours:
            policy.unlink()


def _clear(target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        return
    if _progress(target) is None:
        raise InstallError(
            f"{target} holds something that this did not make: point NNSIGHT_NLA_NDIF_VENV at an "
            "empty or new folder."
        )
    shutil.rmtree(target)


def _build(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    mark = target / _MARK
    mark.write_text(_UNFINISHED)
    venv.create(target, with_pip=True)
    pip = [str(target / "bin" / "python"), "-m", "pip", "install", "--progress-bar=off"]
    subprocess.run([*pip, "-r", str(_REQUIREMENTS), "-c", str(_CONSTRAINTS)], check=True)
    subprocess.run(
        [*pip, "--no-deps", "--ignore-requires-python", "-r", str(_NO_DEPENDENCIES)], check=True
    )
    mark.write_text(key())


def main() -> None:
    """Install, and print the folder as the last line."""
    try:
        sys.stdout.write(f"{install()}\n")
    except InstallError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
