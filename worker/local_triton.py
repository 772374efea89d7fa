"""NVIDIA Triton from the wheel nvidia-pytriton: the server and its Python backend, nothing else."""

import http.client
import importlib.metadata
import os
import re
import secrets
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from worker.errors import LocalStackError
from worker.local_server import HOST, INSTALL_HINT, LocalServer, free_port, wheel_directory

MODEL_REPOSITORY = Path(__file__).resolve().parent.parent / "triton_models"
_ROOT = str(MODEL_REPOSITORY.parent)
SUPPORTED_PYTHONS = ((3, 11), (3, 12))
INFO_OR_TABLE = re.compile(r"\S+Z I |[|+]|$")  # of the log; it ends in screenfuls of both
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Triton and its models exchange tensors


class LocalTriton(LocalServer):
    """Serves a model repository; models run in this Python and import what it can import.

    Models are loaded at the start; a new version lies in wait until the repository API's `load` is called.
    port: of gRPC; HTTP gets a free one. threads: of one forward pass; models have several
    instances, and a second thread speeds a pass of a few rows up by next to nothing.
    """

    name: ClassVar[str] = "triton"

    def __init__(
        self,
        directory: Path,
        model_repository: Path = MODEL_REPOSITORY,
        port: int = 0,
        *,
        threads: int = 1,
    ) -> None:
        super().__init__(directory, port)
        self.model_repository = model_repository.resolve()
        self.http_port = free_port() if port else 0
        self._threads = threads
        self._id = f"shelfcast-{secrets.token_hex(8)}"
        self._backends = self.directory / "backends"

    @property
    def url(self) -> str:
        """host:port of gRPC, as tritonclient takes it."""
        return self.address

    @property
    def http_url(self) -> str:
        return f"http://{HOST}:{self.http_port}"

    def _prepare(self) -> None:
        stub = _check_requirements()
        if not self.model_repository.is_dir():
            raise LocalStackError(f"no model repository at {self.model_repository}")
        # A copy of 3 MB, made anew in milliseconds: the backend wants the stub of its Python beside itself.
        shutil.rmtree(self._backends, ignore_errors=True)
        shutil.copytree(_server_directory() / "backends", self._backends)
        shutil.copy2(stub, self._backends / "python")
        # The stub's Python ignores PYTHONPATH, but imports this module before the model.
        with (self._backends / "python" / "triton_python_backend_utils.py").open("a") as module:
            entries = [str(Path(entry).absolute()) for entry in sys.path]
            module.write(f"\nimport sys\nsys.path += [e for e in {entries!r} if e not in sys.path]\n")
            # Of two checkouts the one that this file is in, as here: before what is installed, not before the library.
            module.write(
                f"if {_ROOT!r} in sys.path:\n    sys.path.remove({_ROOT!r})\n"
                "    first = [i for i, e in enumerate(sys.path) if e.endswith('-packages')] or [len(sys.path)]\n"
                f"    sys.path.insert(first[0], {_ROOT!r})\n"
            )

    def _command(self) -> list[str]:
        options = {
            "id": self._id,
            "model-repository": self.model_repository,
            "backend-directory": self._backends,
            "backend-config": f"python,shm-region-prefix-name={self._id}-",
            "model-control-mode": "explicit",
            "load-model": "*",
            "http-address": HOST,
            "http-port": self.http_port,
            "grpc-address": HOST,
            "grpc-port": self.port,
            "allow-metrics": "false",
            "exit-timeout-secs": 5,
            "log-format": "ISO8601",
        }
        return [
            str(_server_directory() / "bin" / "tritonserver"),
            *(f"--{name}={value}" for name, value in options.items()),
            "--backend-config=python,stub-timeout-seconds=120",  # its 30 s are short for importing torch
            "--disable-auto-complete-config",  # else each model and its imports are loaded twice
        ]

    def _environment(self) -> Mapping[str, str]:
        libraries = [
            # This Python's own libpython first: with the system's the stub fails on `_PyModule_Add`.
            str(sysconfig.get_config_var("LIBDIR")),
            str(_server_directory().parents[1] / "nvidia_pytriton.libs"),
            os.environ.get("LD_LIBRARY_PATH", ""),
        ]
        return {
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
            # The stub's Python finds its home, and with it the virtual environment, by the `python3` on PATH.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONUNBUFFERED": "1",
            # Threads of a forward pass that wait for each other must sleep: spinning, as is the default, makes a pass
            # several times slower as soon as anything else wants a core, and on a small machine everything is here.
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": str(self._threads),
        }

    def _answers(self) -> bool:
        try:
            _, about = self._get("/v2")
            ready, _ = self._get("/v2/health/ready")
            return self._id.encode() in about and ready == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def _get(self, path: str) -> tuple[int, bytes]:
        # Not urllib, which would ask a proxy named in the environment for 127.0.0.1.
        connection = http.client.HTTPConnection(HOST, self.http_port, timeout=2)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _is_telling(self, log_line: str) -> bool:
        return not INFO_OR_TABLE.match(log_line)

    def _ports(self) -> list[int]:
        return [self.port, self.http_port]

    def _choose_ports(self) -> None:
        self.port, self.http_port = free_port(), free_port()

    def _clean_up(self) -> None:
        for region in SHARED_MEMORY.glob(f"{self._id}-*"):
            region.unlink(missing_ok=True)


def _server_directory() -> Path:
    return wheel_directory("pytriton", "nvidia-pytriton") / "tritonserver"


def _check_requirements() -> Path:
    """The stub of this Python's version. Raises LocalStackError when models could not run in this Python."""
    python = ".".join(map(str, sys.version_info[:2]))
    stub = _server_directory() / "python_backend_stubs" / python / "triton_python_backend_stub"
    if sys.version_info[:2] not in SUPPORTED_PYTHONS or not stub.is_file():
        raise LocalStackError(f"the embedded Triton runs models in Python 3.11 or 3.12, this one is {python}")
    numpy_version = importlib.metadata.version("numpy")
    if int(numpy_version.split(".")[0]) >= 2:
        raise LocalStackError(
            f"the embedded Triton needs numpy<2: string tensors crash it with {numpy_version}; {INSTALL_HINT}"
        )
    return stub
