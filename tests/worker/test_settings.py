import json

import msgspec
import pytest

from forecaster.contract import WINDOWS
from worker.errors import SettingsError
from worker.settings import Settings, load_settings
from worker.write_schemas import settings_table


def test_an_empty_environment_gives_the_defaults() -> None:
    assert load_settings({}) == Settings()
    assert load_settings({"PATH": "/bin", "SHELFCASTER": "1"}) == Settings()


def test_each_kind_of_value_is_read() -> None:
    settings = load_settings(
        {
            "SHELFCAST_KAFKA_BOOTSTRAP_SERVERS": "a:1,b:2",
            "SHELFCAST_PARTITION_COUNT": "16",
            "SHELFCAST_TRITON_TIMEOUT_S": "2.5",
            "SHELFCAST_REDIS_CLUSTER": "true",
            "SHELFCAST_CREATE_TOPICS": "0",
            "SHELFCAST_CLOCK": "event",
            "SHELFCAST_FORECAST_FREQS": "1h, 1d,",
            "SHELFCAST_LOCATION_TIME_ZONES": "lisbon=Europe/Lisbon, azores = Atlantic/Azores,",
            "SHELFCAST_KAFKA_SASL_PASSWORD": "",
        }
    )
    assert settings.kafka_bootstrap_servers == "a:1,b:2"
    assert (settings.partition_count, settings.triton_timeout_s) == (16, 2.5)
    assert (settings.redis_cluster, settings.create_topics, settings.clock) == (True, False, "event")
    assert settings.forecast_freqs == ("1h", "1d")
    assert settings.location_time_zones == {"lisbon": "Europe/Lisbon", "azores": "Atlantic/Azores"}
    assert settings.shop_calendar().zone("azores") == "Atlantic/Azores"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SHELFCAST_WEB_PORT", "http"),
        ("SHELFCAST_WEB_PORT", ""),
        ("SHELFCAST_WEB_PORT", "65536"),
        ("SHELFCAST_PARTITION_COUNT", "0"),
        ("SHELFCAST_PARTITION_COUNT", "8.5"),
        ("SHELFCAST_TRITON_TIMEOUT_S", "0"),
        ("SHELFCAST_KAFKA_SESSION_TIMEOUT_S", "nan"),
        ("SHELFCAST_REDIS_CLUSTER", "perhaps"),
        ("SHELFCAST_CLOCK", "sun"),
        ("SHELFCAST_KAFKA_SECURITY_PROTOCOL", "ssl"),
        ("SHELFCAST_NAMESPACE", "my shop"),
        ("SHELFCAST_NAMESPACE", ""),
        ("SHELFCAST_MAX_REJECT_SHARE", "1.1"),
        ("SHELFCAST_FORECAST_BATCH_SIZE", "513"),
        ("SHELFCAST_FORECAST_FREQS", ""),
        ("SHELFCAST_FORECAST_FREQS", "1h,2h"),
        ("SHELFCAST_LOCATION_TIME_ZONES", "lisbon"),
        ("SHELFCAST_PREDICTION_LENGTH_1H", "49"),
        ("SHELFCAST_PREDICTION_LENGTH_1D", "29"),
        ("SHELFCAST_RETENTION_1H", "335"),
        ("SHELFCAST_RETENTION_1D", "181"),
        ("SHELFCAST_PARTITIONS", "8"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_its_variable(variable: str, value: str) -> None:
    others = {"SHELFCAST_CURRENCY": "GBP", "SHELFCAST_REDIS_URL": "redis://redis:6379/0"}
    with pytest.raises(SettingsError, match=variable):
        load_settings({**others, variable: value})


@pytest.mark.parametrize("variable", ["SHELFCAST_TIME_ZONE", "SHELFCAST_LOCATION_TIME_ZONES"])
def test_a_time_zone_that_does_not_exist_is_refused_by_its_name(variable: str) -> None:
    with pytest.raises(SettingsError, match=r"Mars/Base.*IANA"):
        load_settings({variable: "york=Mars/Base" if "LOCATION" in variable else "Mars/Base"})


@pytest.mark.parametrize("freq", list(WINDOWS))
def test_the_longest_forecast_and_the_shortest_retention_the_model_allows_are_taken(freq: str) -> None:
    days = {"1w": 7 * WINDOWS["1w"].context_length, "1d": WINDOWS["1d"].context_length}
    stored = "1h" if freq == "1h" else "1d"
    settings = load_settings(
        {
            "SHELFCAST_FORECAST_FREQS": freq,
            f"SHELFCAST_RETENTION_{stored.upper()}": str(days.get(freq, WINDOWS["1h"].context_length)),
            f"SHELFCAST_PREDICTION_LENGTH_{freq.upper()}": str(WINDOWS[freq].max_prediction_length),
        }
    )
    assert settings.prediction_length(freq) == WINDOWS[freq].max_prediction_length


def test_settings_cannot_be_changed_once_read() -> None:
    with pytest.raises(AttributeError):
        load_settings({}).web_port = 1  # type: ignore[misc]


def test_what_changes_forecasts_changes_the_configurations_hash_and_nothing_else_does() -> None:
    before = Settings()
    meaning = {"time_zone": "Europe/London", "retention_1d": 500, "prediction_length_1h": 24, "currency": "GBP"}
    elsewhere = {"web_port": 1, "redis_url": "redis://other/0", "namespace": "other", "forecast_batch_size": 8}
    for name, value in meaning.items():
        assert msgspec.structs.replace(before, **{name: value}).config_hash() != before.config_hash()
    for name, value in elsewhere.items():
        assert msgspec.structs.replace(before, **{name: value}).config_hash() == before.config_hash()


def test_two_namespaces_share_no_output() -> None:
    assert load_settings({"SHELFCAST_NAMESPACE": "replay"}).topic_forecasts == "replay.forecasts.v1"
    assert Settings().topic_forecasts == "shelfcast.forecasts.v1"


def test_the_table_names_every_setting_once_with_its_default() -> None:
    lines = settings_table().splitlines()
    fields = msgspec.structs.fields(Settings)
    assert len(lines) == 2 + len(fields)
    for line, field in zip(lines[2:], fields, strict=True):
        _, variable, default, meaning, _ = (cell.strip() for cell in line.split("|"))
        assert variable == f"`SHELFCAST_{field.name.upper()}`"
        assert meaning
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert json.loads(default.strip("`")) == field.default


def test_every_default_of_the_table_is_what_the_variable_would_be_set_to() -> None:
    environment = {}
    for line in settings_table().splitlines()[2:]:
        _, variable, default, _, _ = (cell.strip().strip("`") for cell in line.split("|"))
        if default:
            environment[variable] = default
    assert load_settings(environment) == Settings()
