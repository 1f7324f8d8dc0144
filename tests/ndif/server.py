"""A real NDIF server on 127.0.0.1, as a context manager.

    with NdifServer(python="…/bin/python") as server:
        CONFIG.API.HOST = server.url

Five kinds of processes, each the leader of a session of its own and each with a log file:

    redis   the queue between the API and the dispatcher, and the way back of status and results
    store   moto as the object store: statuses of non-blocking jobs, results too big for a reply
    ray     the cluster: the controller and one actor per model (actors.py), loaded when first asked
    api     gunicorn: the HTTP API (gate.py) and the dispatcher, its child
    reaper  ends all of the others when this process closes its pipe, or dies (reaper.py)
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from . import install
from .reaper import Reaper, end

_HERE = Path(__file__).resolve().parent
_START_LIMIT = 180.0
_POLL = 0.25
_GONE = 10.0
_PORTS = (
    "redis", "store", "api", "ray", "ray_client", "ray_dashboard", "ray_agent", "ray_agent_http",
    "ray_metrics", "ray_objects", "ray_node", "ray_environments", "ray_autoscaler_metrics",
    "ray_dashboard_metrics",
)  # fmt: skip

TRUSTED_KEY = "00000000-0000-0000-0000-000000000001"
UNTRUSTED_KEY = "00000000-0000-0000-0000-000000000002"


class ServerError(Exception):
    """The server did not start or did not stay up; the message ends with the log that says why."""


class NdifServer:
    """One NDIF server and its processes.

    Attributes:
        url: Where the API listens; the same again after `start_api`.
        logs: The folder of the log files, `ray` below it. Deleted by `stop` unless `keep_logs`.
        timing: Seconds from `start` to each stage.
    """

    def __init__(
        self,
        python: str | Path = sys.executable,
        *,
        python_path: Sequence[str | Path] = (),
        memory_bytes: int = 8 << 30,
        keep_logs: bool = False,
    ) -> None:
        """Choose the ports and the environment; nothing runs before `start`.

        Args:
            python: The interpreter of the server's virtual environment.
            python_path: Folders that the server can import from besides: what a host "has".
            memory_bytes: How much memory NDIF believes it may fill with models.
            keep_logs: Leave the log folder behind. A failed start always does.
        """
        self._python = Path(python)
        self._memory_bytes = memory_bytes
        self._keep_logs = keep_logs
        self._ports = _free_ports(_PORTS)
        # Directly below /tmp: Ray puts sockets here, whose paths end at 107 characters.
        self.logs = Path(tempfile.mkdtemp(prefix="ndif-", dir="/tmp"))
        self.url = f"http://127.0.0.1:{self._ports['api']}"
        self.timing: dict[str, float] = {}
        self._environment = self._make_environment(python_path)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._reaper: Reaper | None = None
        # A test may stop the API from a thread, below a request that is running.
        self._api_changes = threading.Lock()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start everything and wait until the API says that it is connected to the cluster.

        Raises:
            ServerError: If a process ended, or `/connected` was not true within three minutes.
        """
        began = time.monotonic()
        try:
            self._reaper = Reaper()
            self._start_redis()
            self._start_store()
            self._start_ray()
            self.timing["ray"] = time.monotonic() - began
            self._spawn_api()
            self._start_controller()
            self.timing["controller"] = time.monotonic() - began
            self._wait("api", self._is_connected)
            self.timing["connected"] = time.monotonic() - began
        except BaseException:
            self._keep_logs = True
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End every process; safe to call twice."""
        if self._reaper is not None:
            self._reaper.close()
        for process in self._processes.values():
            process.wait()
        self._reaper = None
        self._processes = {}
        if not self._keep_logs:
            shutil.rmtree(self.logs, ignore_errors=True)

    def stop_api(self) -> None:
        """Kill the API and its dispatcher, as a crash would; the cluster and its models stay."""
        with self._api_changes:
            process = self._processes.pop("api")
            end({process.pid}, grace=0)
            process.wait()
            # A worker that dies later than its master holds the socket for a moment longer.
            deadline = time.monotonic() + _GONE
            while self._accepts() and time.monotonic() < deadline:
                time.sleep(0.05)
            # The dispatcher's own word that it is connected, which it could not take back.
            self._redis("DEL ray:connected")

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._ports["api"])) == 0

    def start_api(self) -> None:
        """Start the API again at the same url, and wait until it is connected."""
        with self._api_changes:
            if "api" in self._processes:
                raise ServerError("The API has not been stopped.")
            self._spawn_api()
            self._wait("api", self._is_connected)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """The API is gone inside the block and back after it, whatever happens in between."""
        self.stop_api()
        try:
            yield
        finally:
            self.start_api()

    def tail(self, lines: int = 30) -> str:
        """The last lines of every log, the newest log last."""
        logs = sorted(self.logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
        return "\n".join(f"--- {log}\n{_last_lines(log, lines)}" for log in logs)

    def _make_environment(self, python_path: Sequence[str | Path]) -> dict[str, str]:
        ports = self._ports
        inherited = {
            name: value
            for name, value in os.environ.items()
            # Ray refuses a GPU, even a nominal one, where CUDA_VISIBLE_DEVICES is empty.
            if not name.startswith(("RAY_", "NDIF_", "PYTEST_", "PYTHON", "CUDA_"))
        }
        return {
            **inherited,
            "PATH": f"{self._python.parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(_HERE), *map(str, python_path)]),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(self.logs / "huggingface"),
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # By default 15: on a busy machine the model's process then gets no time at all.
            "RAY_worker_niceness": "0",
            # Its name says little: "0" is what makes Ray take 127.0.0.1 for its own address.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "AUTOSCALER_METRIC_PORT": str(ports["ray_autoscaler_metrics"]),
            "DASHBOARD_METRIC_PORT": str(ports["ray_dashboard_metrics"]),
            "NDIF_HOME": str(self.logs),
            "NDIF_REDIS_URL": f"redis://127.0.0.1:{ports['redis']}",
            "NDIF_OBJECT_STORE_URL": f"http://127.0.0.1:{ports['store']}",
            "NDIF_RAY_ADDRESS": f"ray://127.0.0.1:{ports['ray_client']}",
            "NDIF_CONTROLLER_IMPORT_PATH": "actors.CPUControllerActor",
            "NDIF_DEFAULT_MODEL_ACTOR_CLASS": "actors.CPUModelActor",
            "NDIF_UNTRUSTED_KEY": UNTRUSTED_KEY,
            # Bit-equal to a local float32 run, and no memory set aside beside a tiny model.
            "NDIF_DEFAULT_DTYPE": "float32",
            "NDIF_DEFAULT_PADDING_BIAS": "0",
            "NDIF_AUTOSCALING_MAX_REPLICAS": "1",
            "NDIF_SANDBOX_POOL_SIZE": "1",
            # /status is cached that long: a test asks again after the model was deployed.
            "NDIF_STATUS_TTL_S": "1",
        }

    def _start_redis(self) -> None:
        port = self._ports["redis"]
        options = f"--bind 127.0.0.1 --port {port} --daemonize no --appendonly no"
        self._spawn("redis", ["redis-server", *options.split(), "--save", ""])
        self._wait("redis", lambda: _is_listening(port))

    def _start_store(self) -> None:
        port = self._ports["store"]
        self._spawn("store", [self._binary("moto_server"), "-H", "127.0.0.1", "-p", str(port)])

    def _start_ray(self) -> None:
        ports = self._ports
        resources = {
            "head": 10,
            "cuda_memory_bytes": self._memory_bytes,
            "cpu_memory_bytes": self._memory_bytes,
        }
        options = {
            "node-ip-address": "127.0.0.1",
            "port": ports["ray"],
            "ray-client-server-port": ports["ray_client"],
            "object-manager-port": ports["ray_objects"],
            "node-manager-port": ports["ray_node"],
            "runtime-env-agent-port": ports["ray_environments"],
            # NDIF's controller reads the cluster's state through the dashboard's API.
            "include-dashboard": "true",
            "dashboard-host": "127.0.0.1",
            "dashboard-port": ports["ray_dashboard"],
            "dashboard-agent-grpc-port": ports["ray_agent"],
            "dashboard-agent-listen-port": ports["ray_agent_http"],
            "metrics-export-port": ports["ray_metrics"],
            # Nominal: the controller places a model on a GPU, the actors never touch one.
            "num-cpus": 8,
            "num-gpus": 1,
            "object-store-memory": 256 << 20,
            "temp-dir": self.logs / "ray",
            "resources": json.dumps(resources),
        }
        command = [self._binary("ray"), "start", "--head", "--block", "--disable-usage-stats"]
        self._spawn("ray", [*command, *(f"--{name}={value}" for name, value in options.items())])
        waited_for = [ports[name] for name in ("ray", "ray_client", "ray_dashboard")]
        self._wait("ray", lambda: all(map(_is_listening, waited_for)))

    def _start_controller(self) -> None:
        """Put NDIF's controller into the cluster, where it stays; the process that does it ends."""
        module = "ndif.services.ray.deployments.controller.controller"
        environment = {"RAY_ADDRESS": f"127.0.0.1:{self._ports['ray']}"}
        process = self._spawn("controller", [str(self._python), "-m", module], environment)
        self._wait("controller", lambda: process.poll() == 0)
        del self._processes["controller"]

    def _spawn_api(self) -> None:
        command = [self._binary("gunicorn"), "--config", "python:ndif.services.api.gunicorn_conf"]
        bind = f"127.0.0.1:{self._ports['api']}"
        # It would otherwise open one in ~/.gunicorn, the same for every server of this user.
        self._spawn("api", [*command, "--bind", bind, "--no-control-socket", "gate:app"])

    def _spawn(
        self, name: str, command: Sequence[str], environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        if self._reaper is None:
            raise ServerError(f"NDIF's {name} process needs the others: call start() first.")
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**self._environment, **(environment or {})},
                cwd=self.logs,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes[name] = process
        self._reaper.watch(process.pid)
        return process

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_LIMIT
        while not ready():
            self._check_alive()
            if time.monotonic() > deadline:
                raise self._error(name, f"was not ready after {_START_LIMIT:.0f} s")
            time.sleep(_POLL)

    def _check_alive(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise self._error(name, f"ended with {process.returncode}")

    def _is_connected(self) -> bool:
        return _answers(f"{self.url}/connected")

    def _error(self, name: str, what: str) -> ServerError:
        log = self.logs / f"{name}.log"
        return ServerError(
            f"NDIF's {name} process {what}. All logs are in {self.logs}; the end of {log.name}:\n"
            f"{_last_lines(log, 30)}"
        )

    def _binary(self, name: str) -> str:
        return str(self._python.parent / name)

    def _redis(self, command: str) -> None:
        with socket.create_connection(("127.0.0.1", self._ports["redis"]), 5) as connection:
            connection.sendall(f"{command}\r\n".encode())
            connection.recv(64)


def _free_ports(names: Sequence[str]) -> dict[str, int]:
    """A free port for each name: all are held before the first is let go, so none comes twice."""
    sockets = {name: socket.socket() for name in names}
    try:
        for held in sockets.values():
            held.bind(("127.0.0.1", 0))
        return {name: held.getsockname()[1] for name, held in sockets.items()}
    finally:
        for held in sockets.values():
            held.close()


def _is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _last_lines(path: Path, count: int) -> str:
    if not path.is_file():
        return "(no log)"
    return "\n".join(path.read_text(errors="replace").splitlines()[-count:])


def main() -> None:
    """Run a server by hand until Ctrl-C: `python -m tests.ndif.server`."""
    if missing := install.missing():
        sys.exit(missing)
    with NdifServer(install.NDIF.python, keep_logs=True) as server:
        sys.stdout.write(f"{server.url}  logs: {server.logs}  {server.timing}\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
