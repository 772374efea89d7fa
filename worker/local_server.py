"""One server process on 127.0.0.1: start, wait until it answers, stop, kill, start again at the same address."""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from worker.errors import LocalStackError

HOST = "127.0.0.1"
DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")
INSTALL_HINT = "pip install 'shelfcast[embedded]'"

# Free ports come from below 32768, where Linux begins to take ports for outgoing connections: one of those
# could grab the port of a server that a test has stopped, or even connect to itself there.
FIRST_PORT, PORT_COUNT = 20_000, 12_768
START_TIMEOUT_S = 180.0  # the first import of torch from a cold disk takes a minute on a small machine
STOP_TIMEOUT_S = 15.0
PORT_TRIES = 5
LOG_LINES_QUOTED = 20

# Servers die with the thread that started them (die_with_parent.py), so one thread that lives as long as the
# process starts them all, whichever thread asks.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-servers")


class LocalServer(ABC):
    """A server of the local stack; blocking throughout, one caller at a time.

    directory: the stack's; the log is `logs/<name>.log` in it (restarts append), other files are below `<name>/`.
    port: 0 chooses a free one at the first start; the address then stays the same for this object's life.
    """

    name: ClassVar[str]
    exit_code: int | None = None  # of the process that ended last, minus the signal that ended it

    def __init__(self, directory: Path, port: int = 0) -> None:
        self.directory = directory.resolve() / self.name
        self.log_path = directory.resolve() / "logs" / f"{self.name}.log"
        self.port = port
        self._address_is_kept = port != 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """host:port"""
        return f"{HOST}:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and not _has_ended(self._process)

    @property
    def pid(self) -> int:
        if self._process is None:
            raise LocalStackError(f"{self.name} is not running")
        return self._process.pid

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Starts the server unless it runs and waits until it answers. Raises LocalStackError."""
        self.launch()
        try:
            self.wait_until_ready(timeout_s)
        except BaseException:
            self.kill()
            raise

    def launch(self) -> None:
        """Starts the process without waiting for it, so that several servers can start at once."""
        if self.is_running:
            return
        self._end(signal.SIGKILL)  # what a server that died by itself left over
        if self._address_is_kept:
            self._wait_for_free_ports()
        else:
            self._choose_ports()
        self._prepare()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._process = _spawner.submit(self._spawn).result()

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Waits until this very process answers; moves when a port chosen free was taken meanwhile."""
        deadline = time.monotonic() + timeout_s
        tries_left = 0 if self._address_is_kept else PORT_TRIES - 1
        while not (self._answers() and self.is_running):
            if not self.is_running:
                if not tries_left or all(map(_is_free, self._ports())):
                    raise self.failure("ended while starting")
                tries_left -= 1
                self.launch()
            if time.monotonic() > deadline:
                raise self.failure(f"did not answer within {timeout_s:g} s")
            time.sleep(0.02)
        self._address_is_kept = True

    def stop(self) -> None:
        """Asks the server to end, waits, and kills what is left of it. Does nothing when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the server as a crash would."""
        self._end(signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """Send the running server a signal, and leave the rest to it."""
        os.kill(self.pid, number)

    def wait_until_ended(self, timeout_s: float) -> None:
        """Waits for a server that ends by itself. Raises LocalStackError when it still runs after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self.is_running:
            if time.monotonic() > deadline:
                raise self.failure(f"still runs after {timeout_s:g} s")
            time.sleep(0.02)

    def failure(self, what: str) -> LocalStackError:
        """The error that `what` happened to this server, with the end of its log."""
        lines = self.log_path.read_text(errors="replace").splitlines() if self.log_path.exists() else []
        telling = [f"    {line}" for line in lines if self._is_telling(line)]
        quoted = "\n".join(telling[-LOG_LINES_QUOTED:])
        return LocalStackError(f"{self.name} {what}. The end of its log {self.log_path}:\n{quoted}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def _command(self) -> list[str]:
        """The program, by its full path, and its arguments."""

    @abstractmethod
    def _answers(self) -> bool:
        """Is the process we started ready? Another server on the same port does not count. Never raises."""

    def _prepare(self) -> None:  # noqa: B027 - most servers need nothing
        """Checks what the server needs and makes its files, before every start. Raises LocalStackError."""

    def _environment(self) -> Mapping[str, str]:
        """Variables added to those of this process."""
        return {}

    def _is_telling(self, log_line: str) -> bool:
        """Does the line help to see why the server failed?"""
        return True

    def _ports(self) -> list[int]:
        return [self.port]

    def _choose_ports(self) -> None:
        self.port = free_port()

    def _clean_up(self) -> None:  # noqa: B027 - most servers leave nothing
        """Removes what the ended process left outside of its directory."""

    def _spawn(self) -> subprocess.Popen[bytes]:
        wrapper = [sys.executable, "-I", "-S", str(DIE_WITH_PARENT), str(os.getpid())]
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                wrapper + self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                # Handed on, not read: settings live elsewhere, and those of whoever starts a server are not its own.
                env={k: v for k, v in os.environ.items() if not k.startswith("SHELFCAST_")} | dict(self._environment()),
                start_new_session=True,  # Ctrl-C is for the parent alone, and all can be killed as a group
            )

    def _wait_for_free_ports(self, timeout_s: float = 2.0) -> None:
        """A dying process of a server just stopped may hold its ports for a moment longer."""
        deadline = time.monotonic() + timeout_s
        for port in self._ports():
            while not _is_free(port):
                if time.monotonic() > deadline:
                    raise LocalStackError(f"{self.name} cannot start: port {port} of {HOST} is taken")
                time.sleep(0.02)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        process, deadline = self._process, time.monotonic() + STOP_TIMEOUT_S
        if not _has_ended(process):
            os.kill(process.pid, number)
        while not _has_ended(process) and time.monotonic() < deadline:
            time.sleep(0.01)
        # The process is not reaped yet, so its number is still its own and that of its group.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self.exit_code = process.wait()
        self._process = None
        self._clean_up()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now; whoever binds it must be ready to find it taken."""
    for _ in range(1000):
        if _is_free(port := FIRST_PORT + secrets.randbelow(PORT_COUNT)):
            return port
    raise LocalStackError(f"no free port on {HOST} between {FIRST_PORT} and {FIRST_PORT + PORT_COUNT - 1}")


def wheel_directory(package: str, wheel: str) -> Path:
    """Where the wheel's top-level `package` lies, not imported. Raises LocalStackError when it is missing."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LocalStackError(f"the wheel {wheel} is not installed: {INSTALL_HINT}")
    return Path(spec.submodule_search_locations[0])


def program_on_path(name: str) -> Path | None:
    """Where a program is, as it is named: Debian's redis-server is a link to a program that looks at its own name."""
    found = shutil.which(name)
    return Path(found).absolute() if found else None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not matter
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Looks without reaping, so that the process's number cannot be given to another one meanwhile."""
    if process.returncode is not None:
        return True
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
