"""What docker/compose.yaml promises, read from the file: no engine is needed."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from worker.settings import ENVIRONMENT_PREFIX, Settings

REPOSITORY = Path(__file__).resolve().parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker" / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def test_redis_evicts_nothing_and_writes_a_log() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--appendonly"] == "yes"
    assert "redis:/data" in SERVICES["redis"]["volumes"]


def test_kafka_makes_no_topics_by_itself() -> None:
    assert SERVICES["kafka"]["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_variables_of_the_worker_are_settings() -> None:
    fields = {field.name for field in msgspec.structs.fields(Settings)}
    variables = SERVICES["worker"]["environment"]
    assert variables
    for name in variables:
        assert name.startswith(ENVIRONMENT_PREFIX)
        assert name.removeprefix(ENVIRONMENT_PREFIX).lower() in fields


def test_worker_talks_to_addresses_the_services_have() -> None:
    variables = SERVICES["worker"]["environment"]
    listeners = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"INTERNAL://{variables['SHELFCAST_KAFKA_BOOTSTRAP_SERVERS']}" in listeners
    assert variables["SHELFCAST_REDIS_URL"] == "redis://redis:6379/0"
    assert variables["SHELFCAST_TRITON_URL"] == "triton:8001"


@pytest.mark.parametrize("service", ["triton-gpu", "triton-cpu"])
def test_either_triton_answers_to_the_same_name(service: str) -> None:
    assert "triton" in SERVICES[service]["networks"]["default"]["aliases"]
    assert SERVICES[service]["profiles"] == [service.removeprefix("triton-")]


def test_only_the_gpu_profile_reserves_devices() -> None:
    assert "deploy" not in SERVICES["triton-cpu"]
    (device,) = SERVICES["triton-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]


def test_worker_waits_for_healthy_services_and_has_time_to_stop() -> None:
    worker = SERVICES["worker"]
    assert set(worker["depends_on"]) == {"kafka", "redis", "triton-gpu", "triton-cpu"}
    assert all(needed["condition"] == "service_healthy" for needed in worker["depends_on"].values())
    assert "http://localhost:6066/ready" in worker["healthcheck"]["test"][-1]
    assert worker["restart"] == "unless-stopped"
    assert worker["stop_grace_period"] == "60s"


@pytest.mark.parametrize("service", SERVICES)
def test_service_is_checked_and_published_to_this_machine_only(service: str) -> None:
    assert SERVICES[service]["healthcheck"]["test"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[service]["ports"])


@pytest.mark.parametrize("service", [name for name, service in SERVICES.items() if "build" in service])
def test_dockerfile_of_a_built_service_exists(service: str) -> None:
    build = SERVICES[service]["build"]
    context = (REPOSITORY / "docker" / build["context"]).resolve()
    assert context == REPOSITORY
    assert (context / build["dockerfile"]).is_file()
