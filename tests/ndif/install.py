"""Makes the virtual environment of the loopback NDIF server: `python -m tests.ndif.install`.

The server lives apart from the project: it needs Ray, Redis and a web server, which no user of
`nnsight_nla` needs, and the tests must show that it does *not* have `nnsight_nla`. See
`tests/helpers/environments.py`. Running this twice does nothing the second time.
"""

import os
import shutil
import subprocess
from pathlib import Path

from tests.helpers.environments import Environment, InstallError, main

_HERE = Path(__file__).resolve().parent
_REQUIREMENTS = _HERE / "requirements.txt"
_NO_DEPENDENCIES = _HERE / "requirements-no-deps.txt"
_CONSTRAINTS = _HERE / "constraints.txt"

NDIF = Environment("ndif", [_REQUIREMENTS, _NO_DEPENDENCIES, _CONSTRAINTS])


def missing() -> str | None:
    """What keeps the server from starting, in one line that says how to get it; None if nothing."""
    if not NDIF.complete:
        return f"the NDIF server's environment is not installed: run `{NDIF.command}`"
    if shutil.which("redis-server") is None:
        return f"redis-server is not installed: run `{NDIF.command}` as root, or install it by hand"
    return None


def install() -> Path:
    """Make the environment if it is not there, and return its folder.

    Raises:
        InstallError: If redis-server cannot be installed, or the folder holds something else.
        subprocess.CalledProcessError: If pip or apt-get failed; both wrote why.
    """
    with NDIF.alone():
        _install_redis()
        NDIF.make(_fill)
    return NDIF.folder


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


def _fill() -> None:
    NDIF.pip("install", "--progress-bar=off", "-r", str(_REQUIREMENTS), "-c", str(_CONSTRAINTS))
    bare = ["--no-deps", "--ignore-requires-python", "-r", str(_NO_DEPENDENCIES)]
    NDIF.pip("install", "--progress-bar=off", *bare)


if __name__ == "__main__":
    main(install)
