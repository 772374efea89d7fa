"""Real servers for all tests, started when a test first asks for one and stopped when the session ends.

What stops or kills a server must not use these: it makes a `LocalStack` or a single server of its own.
"""

import socket
from collections.abc import Iterator

import pytest

from worker.local_stack import LocalBroker, LocalRedis, LocalStack, redis_binaries
from worker.local_triton import LocalTriton


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """The session's stack with nothing started yet; tests take one of the fixtures below."""
    stack = LocalStack(tmp_path_factory.mktemp("stack"))
    yield stack
    stack.stop()


@pytest.fixture(scope="session")
def stack(servers: LocalStack) -> LocalStack:
    """Broker, Redis and Triton with the repository's models."""
    servers.start()
    return servers


@pytest.fixture(scope="session")
def broker(servers: LocalStack) -> LocalBroker:
    servers.kafka.start()
    return servers.kafka


@pytest.fixture(scope="session")
def redis_server(servers: LocalStack) -> LocalRedis:
    servers.redis.start()
    return servers.redis


@pytest.fixture(scope="session")
def triton_server(servers: LocalStack) -> LocalTriton:
    """With the repository's models."""
    servers.triton.start()
    return servers.triton


@pytest.fixture
def redis_url(redis_server: LocalRedis) -> str:
    """Of the session's Redis, emptied."""
    empty_redis(redis_server)
    return redis_server.url


# With no Redis at all the one parameter fails, with the message that says what to install, instead of skipping.
@pytest.fixture(scope="session", params=list(redis_binaries()) or ["missing"])
def each_redis_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRedis]:
    """Every Redis and Valkey found, one after the other."""
    binary = redis_binaries().get(request.param)
    with LocalRedis(tmp_path_factory.mktemp(f"redis-{request.param}"), binary=binary) as server:
        yield server


@pytest.fixture
def each_redis_url(each_redis_server: LocalRedis) -> str:
    """Of every Redis and Valkey found, one after the other, emptied."""
    empty_redis(each_redis_server)
    return each_redis_server.url


def empty_redis(server: LocalRedis) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"FLUSHALL\r\nSCRIPT FLUSH\r\n")
        replies = connection.makefile("rb")
        assert [replies.readline() for _ in range(2)] == [b"+OK\r\n"] * 2
