"""Settings: one frozen object, read once from the environment. Every field is documented where it stands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from feature_store.calendar_time import ShopCalendar, UnknownTimeZoneError
from feature_store.decoding import DecodeLimits
from feature_store.features import SOURCES
from feature_store.layout import STORED_FREQS
from forecaster.contract import WINDOWS, features_hash
from worker.errors import SettingsError

ENVIRONMENT_PREFIX = "SHELFCAST_"
INPUT_SOURCES = ("orders", "clicks", "reviews", "products", "calendar", "stock")


_FREQ_LISTS = (
    "forecast_freqs",
    "touched_freqs",
    "refreshed_freqs",
    "calibrated_freqs",
    "scored_freqs",
    "item_accuracy_freqs",
    "alert_freqs",
    "input_drift_freqs",
)
_NOT_BY_WEEK = ("alert_freqs", "input_drift_freqs")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of a worker. `kafka_bootstrap_servers` is read from SHELFCAST_KAFKA_BOOTSTRAP_SERVERS, and so on."""

    kafka_bootstrap_servers: Annotated[str, Meta(description="Kafka brokers, host:port, comma-separated")] = (
        "127.0.0.1:9092"
    )
    kafka_security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], Meta(description="how to talk to Kafka")
    ] = "PLAINTEXT"
    kafka_sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], Meta(description="SASL mechanism, when SASL is on")
    ] = "PLAIN"
    kafka_sasl_username: Annotated[str, Meta(description="SASL user")] = ""
    kafka_sasl_password: Annotated[str, Meta(description="SASL password")] = ""
    kafka_ssl_ca_file: Annotated[str, Meta(description="PEM file of the CA; empty = the system's")] = ""
    kafka_session_timeout_s: Annotated[
        float, Meta(gt=0, description="seconds without a heartbeat after which Kafka gives a worker's partitions away")
    ] = 30.0
    kafka_fetch_max_wait_ms: Annotated[
        int, Meta(ge=1, description="how long a broker may hold a fetch back that finds too little, in milliseconds")
    ] = 500
    kafka_fetch_min_bytes: Annotated[
        int, Meta(ge=1, description="how much a broker gathers for a fetch before it answers, unless the wait is over")
    ] = 1

    redis_url: Annotated[str, Meta(description="redis://, rediss:// (TLS), with user, password and data base")] = (
        "redis://127.0.0.1:6379/0"
    )
    redis_cluster: Annotated[
        bool, Meta(description="the URL names nodes of a Redis Cluster: redis://a:6379,b:6379")
    ] = False

    triton_url: Annotated[str, Meta(description="Triton's gRPC address, host:port")] = "127.0.0.1:8001"
    triton_tls: Annotated[bool, Meta(description="TLS towards Triton")] = False
    triton_timeout_s: Annotated[float, Meta(gt=0, description="seconds one request may take, tries included")] = 5.0
    model_name: Annotated[str, Meta(description="Triton model that forecasts")] = "demand_forecaster"
    model_version: Annotated[
        str, Meta(description="its version; empty = the one chosen by `shelfcast model use`, else the newest loaded")
    ] = ""

    challenger_version: Annotated[
        str,
        Meta(description="another version, compared unseen; empty = the one of `shelfcast model challenge`"),
    ] = ""
    challenger_share: Annotated[
        float, Meta(gt=0, le=1, description="share of the items that the challenger is asked about")
    ] = 0.1

    promote: Annotated[
        Literal["never", "when_better"],
        Meta(description="when a challenger takes the published version's place by itself; see docs/accuracy.md"),
    ] = "never"
    promote_days: Annotated[
        int,
        Meta(ge=7, le=14, description="days compared before the rule looks, and again before its second look"),
    ] = 14
    promote_significance: Annotated[
        float, Meta(gt=0, lt=1, description="most that chance may have to do with a promotion, over all looks")
    ] = 0.05
    promote_gain: Annotated[
        float, Meta(ge=0, lt=1, description="share by which WQL has to be lower at the first scored step")
    ] = 0.005

    namespace: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9._-]+\Z",
            description="prefix of consumer group, Redis keys and output topics: two never meet",
        ),
    ] = "shelfcast"
    partition_count: Annotated[
        int, Meta(ge=1, description="partitions of every keyed topic: the number of lanes, and the most workers")
    ] = 8
    create_topics: Annotated[bool, Meta(description="create missing topics at start; false = only check them")] = True
    replication_factor: Annotated[
        int, Meta(ge=-1, description="copies of topics created here; -1 = the broker's default")
    ] = -1
    topic_orders: Annotated[str, Meta(description="orders, cancels and returns")] = "shop.orders.v1"
    topic_clicks: Annotated[str, Meta(description="views, carts and wishlists")] = "shop.clicks.v1"
    topic_reviews: Annotated[str, Meta(description="ratings and texts")] = "shop.reviews.v1"
    topic_products: Annotated[str, Meta(description="product data, compacted")] = "shop.products.v1"
    topic_calendar: Annotated[str, Meta(description="prices, promotions, opening by product, compacted")] = (
        "shop.calendar.v1"
    )
    topic_calendar_global: Annotated[str, Meta(description="the same for the whole shop: 1 partition, compacted")] = (
        "shop.calendar_global.v1"
    )
    topic_stock: Annotated[str, Meta(description="stock levels")] = "shop.stock.v1"
    topic_clock: Annotated[str, Meta(description="event-time clock of a replay; read when clock = event")] = (
        "shelfcast.clock.v1"
    )

    currency: Annotated[str, Meta(description="the shop's currency, ISO 4217; empty = not checked")] = ""
    time_zone: Annotated[str, Meta(description="IANA time zone of the shop: days and weeks are local")] = "UTC"
    location_time_zones: Annotated[
        dict[str, str], Meta(description="other zones by location: lisbon=Europe/Lisbon,azores=Atlantic/Azores")
    ] = {}
    clock: Annotated[
        Literal["wall", "event"], Meta(description="wall = live; event = a replay, driven by the clock topic")
    ] = "wall"
    out_of_orderness_ms: Annotated[
        int, Meta(ge=0, description="milliseconds a bucket stays open after its end for events that come late")
    ] = 5_000
    dedup_window_orders_ms: Annotated[
        int,
        Meta(
            ge=0,
            description="an order whose event_id came before, less than this of event time apart, is dropped; 0 = off",
        ),
    ] = 86_400_000
    dedup_window_clicks_ms: Annotated[int, Meta(ge=0, description="the same for clicks")] = 0
    dedup_window_reviews_ms: Annotated[int, Meta(ge=0, description="the same for reviews")] = 86_400_000
    max_future_ms: Annotated[int, Meta(ge=0, description="events further ahead of the clock are rejected")] = 600_000
    max_message_bytes: Annotated[int, Meta(ge=1, description="larger records are rejected")] = 1_000_000
    max_reject_share: Annotated[
        float,
        Meta(gt=0, le=1, description="share of rejects in a lane's last reject_window records that stops the worker"),
    ] = 0.5
    reject_window: Annotated[int, Meta(ge=1, description="records over which the share is taken, by lane")] = 200

    retention_5m: Annotated[int, Meta(ge=1, description="buckets of 5 minutes kept")] = 288
    retention_1h: Annotated[int, Meta(ge=1, description="buckets of an hour kept")] = 504
    retention_1d: Annotated[int, Meta(ge=1, description="days kept; older events go to the .late topic")] = 400

    forecast_freqs: Annotated[tuple[str, ...], Meta(min_length=1, description="frequencies forecast: 1h, 1d, 1w")] = (
        "1h",
        "1d",
    )
    touched_freqs: Annotated[
        tuple[str, ...],
        Meta(
            description="of these, an item is forecast as soon as an event touches it; else when its bucket has closed"
        ),
    ] = ("1h", "1d", "1w")
    refreshed_freqs: Annotated[
        tuple[str, ...],
        Meta(description="of these, all live items are forecast anew when their bucket has closed"),
    ] = ("1h", "1d", "1w")
    calibrated_freqs: Annotated[
        tuple[str, ...],
        Meta(description="of these, quantiles are adjusted to what has sold; see docs/calibration.md"),
    ] = ("1d",)
    scored_freqs: Annotated[
        tuple[str, ...],
        Meta(description="of these, forecasts are scored once their buckets have closed; see docs/accuracy.md"),
    ] = ("1h", "1d", "1w")
    scored_steps_1h: Annotated[
        tuple[Annotated[int, Meta(ge=1)], ...],
        Meta(description="hourly steps that are scored, 1 = the running hour; beyond prediction_length none are"),
    ] = (1, 24)
    scored_steps_1d: Annotated[
        tuple[Annotated[int, Meta(ge=1)], ...], Meta(description="daily steps that are scored")
    ] = (1, 7, 28)
    scored_steps_1w: Annotated[
        tuple[Annotated[int, Meta(ge=1)], ...], Meta(description="weekly steps that are scored")
    ] = (1, 4)
    score_correction_1h: Annotated[
        int, Meta(ge=0, le=90, description="hours for which late events correct the scores of a closed hour")
    ] = 12
    score_correction_1d: Annotated[int, Meta(ge=0, le=90, description="days for which they correct a closed day's")] = 7
    score_correction_1w: Annotated[int, Meta(ge=0, le=90, description="weeks for which they correct a week's")] = 1
    item_accuracy_freqs: Annotated[
        tuple[str, ...], Meta(description="of these, each item's own accuracy is published too")
    ] = ("1d",)
    accuracy_interval_s: Annotated[
        int, Meta(ge=1, description="seconds of event time between messages of the same window of accuracy")
    ] = 600
    alert_freqs: Annotated[
        tuple[str, ...],
        Meta(description="by these, 1h or 1d, alerts are raised; with both, of the same thing twice"),
    ] = ("1h",)
    input_drift_freqs: Annotated[
        tuple[str, ...],
        Meta(description="of these, 1h or 1d, and where they are scored, what forecasts are made from is watched"),
    ] = ("1d",)
    alert_false_share: Annotated[
        float, Meta(gt=0, lt=1, description="of all alerts, the share that may be false; see docs/alerts.md")
    ] = 0.3
    alert_update_s: Annotated[
        float, Meta(gt=0, description="seconds of event time after which an open alert is told of again")
    ] = 21_600.0
    alert_cooldown_h: Annotated[
        float, Meta(ge=0, description="hours after an alert's close in which none is opened for the item")
    ] = 48.0
    silence_sources: Annotated[tuple[str, ...], Meta(description="whose silence is an alert; empty = none")] = SOURCES
    silence_least_s: Annotated[
        float, Meta(ge=0, description="seconds; shorter silences are none: above how long producers gather events")
    ] = 900.0
    prediction_length_1h: Annotated[int, Meta(ge=1, description="hourly steps")] = 48
    prediction_length_1d: Annotated[int, Meta(ge=1, description="daily steps")] = 28
    prediction_length_1w: Annotated[int, Meta(ge=1, description="weekly steps")] = 13
    forecast_interval_ms: Annotated[int, Meta(ge=1, description="touched items are forecast this often, together")] = 50
    forecast_batch_size: Annotated[int, Meta(ge=1, le=512, description="items in one request to Triton")] = 256
    refresh_per_s: Annotated[
        int, Meta(ge=1, description="untouched items refreshed a second after a bucket closed, after touched ones")
    ] = 1000
    live_days: Annotated[int, Meta(ge=1, description="an item without orders for longer is no longer refreshed")] = 90

    watchdog_s: Annotated[
        float,
        Meta(
            ge=0, description="seconds without progress, with records to read and no outage, that end a worker; 0 = off"
        ),
    ] = 300.0
    web_host: Annotated[str, Meta(description="address of /live, /ready and /metrics")] = "127.0.0.1"
    web_port: Annotated[int, Meta(ge=0, le=65535, description="port of /live, /ready and /metrics")] = 6066

    def __post_init__(self) -> None:
        self._check_lists()
        for freq in self.forecast_freqs:
            longest = WINDOWS[freq].max_prediction_length
            if self.prediction_length(freq) > longest:
                raise ValueError(f"prediction_length_{freq}: at most {longest}, the model's own limit")
            needed = stored_buckets(freq)
            if self.retention[stored_freq(freq)] < needed:
                raise ValueError(
                    f"retention_{stored_freq(freq)}: {freq} forecasts look back over {needed} of its buckets"
                )
        if len(set(self.forecast_freqs)) < len(self.forecast_freqs):
            raise ValueError("forecast_freqs: a frequency is named twice")
        if len(self.input_topics) < len(INPUT_SOURCES):
            raise ValueError("topic_orders: two of the input topics have the same name")
        try:
            self.shop_calendar()
        except UnknownTimeZoneError as error:
            bad_zone = "time_zone" if self.time_zone in str(error) else "location_time_zones"
            raise ValueError(f"{bad_zone}: {error}") from error

    def _check_lists(self) -> None:
        for field in _FREQ_LISTS:
            for freq in getattr(self, field):
                allowed = [known for known in WINDOWS if field not in _NOT_BY_WEEK or known != "1w"]
                if freq not in allowed:
                    raise ValueError(f"{field}: {freq!r} is not one of {', '.join(allowed)}")
        if unknown := sorted(set(self.silence_sources) - set(SOURCES)):
            raise ValueError(f"silence_sources: {unknown[0]!r} is not one of {', '.join(SOURCES)}")

    def prediction_length(self, freq: str) -> int:
        """Steps of a forecast, the running bucket included."""
        return int(getattr(self, f"prediction_length_{freq}"))

    def scored_steps(self, freq: str) -> tuple[int, ...]:
        """Steps that are scored, ascending; none of a frequency that is not."""
        steps = sorted(set(getattr(self, f"scored_steps_{freq}"))) if freq in self.scored_freqs else []
        return tuple(step for step in steps if step <= self.prediction_length(freq))

    def score_correction(self, freq: str) -> int:
        """Buckets for which a closed one's scores are corrected."""
        return int(getattr(self, f"score_correction_{freq}"))

    @property
    def retention(self) -> dict[str, int]:
        """Buckets kept by stored frequency."""
        return {freq: int(getattr(self, f"retention_{freq}")) for freq in STORED_FREQS}

    @property
    def dedup_window_ms(self) -> dict[str, int]:
        """Window of de-duplication by source; 0 = off."""
        return {source: int(getattr(self, f"dedup_window_{source}_ms")) for source in ("orders", "clicks", "reviews")}

    @property
    def topic_forecasts(self) -> str:
        """Output topic of forecasts."""
        return f"{self.namespace}.forecasts.v1"

    @property
    def topic_alerts(self) -> str:
        """Output topic of alerts."""
        return f"{self.namespace}.alerts.v1"

    @property
    def topic_accuracy(self) -> str:
        """Output topic of accuracy."""
        return f"{self.namespace}.accuracy.v1"

    @property
    def topic_replenishment(self) -> str:
        """Output topic of orders."""
        return f"{self.namespace}.replenishment.v1"

    @property
    def input_topics(self) -> dict[str, str]:
        """Source by topic, for the topics that lanes consume."""
        return {getattr(self, f"topic_{source}"): source for source in INPUT_SOURCES}

    def shop_calendar(self) -> ShopCalendar:
        """Time zones of the shop's locations."""
        return ShopCalendar(self.time_zone, self.location_time_zones)

    def decode_limits(self, partition_of: Callable[[str], int], max_event_time_ms: int = 2**62) -> DecodeLimits:
        """What records are held to; `partition_of` says where a product belongs."""
        return DecodeLimits(
            currency=self.currency,
            max_event_time_ms=max_event_time_ms,
            max_message_bytes=self.max_message_bytes,
            partition_of=partition_of,
        )

    def store_options(self) -> dict[str, Any]:
        """Arguments of the FeatureStore that these settings mean."""
        return {
            "url": self.redis_url,
            "namespace": self.namespace,
            "partition_count": self.partition_count,
            "forecast_freqs": self.forecast_freqs,
            "cluster": self.redis_cluster,
        }

    def config_hash(self) -> str:
        """Hash of the settings that change what is forecast. Part of every forecast_id."""
        names = ("time_zone", "location_time_zones", "retention", "forecast_freqs", "out_of_orderness_ms", "currency")
        meaning: dict[str, Any] = {name: getattr(self, name) for name in names}
        meaning["prediction_lengths"] = {freq: self.prediction_length(freq) for freq in self.forecast_freqs}
        meaning["calibrated_freqs"] = [freq for freq in self.forecast_freqs if freq in self.calibrated_freqs]
        meaning["features_hash"] = features_hash()
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:12]


def stored_freq(freq: str) -> str:
    """Frequency of the stored buckets that a forecast frequency reads: weeks are summed from days."""
    return "1d" if freq == "1w" else freq


def stored_buckets(freq: str) -> int:
    """How many of those before the running one it reads."""
    return WINDOWS[freq].context_length * (7 if freq == "1w" else 1)


def load_settings(environment: Mapping[str, str]) -> Settings:
    """Read settings from environment variables.

    Raises:
        SettingsError: a value that can't be, or a SHELFCAST_ variable that no setting has (a misspelling).
    """
    types = get_type_hints(Settings)
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name not in types:
            raise SettingsError(f"{variable} is not a setting; see the settings table in the README for their names")
        values[name] = _parse(variable, text, types[name])
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        # Our own messages begin with the field, msgspec's end with it.
        message = str(error)
        name = (
            message.partition(":")[0] if message.partition(":")[0] in types else message.rpartition("$.")[2].rstrip("`")
        )
        raise SettingsError(f"{ENVIRONMENT_PREFIX}{name.upper()}: {message}") from error


def _parse(variable: str, text: str, kind: Any) -> Any:
    """Lists as a,b and maps as a=b,c=d; everything else is left to msgspec."""
    if get_origin(kind) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if get_origin(kind) is dict:
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        if not all(equals for _, equals, _ in pairs):
            raise SettingsError(f"{variable}: write name=value,name=value; got {text!r}")
        return {name.strip(): value.strip() for name, _, value in pairs}
    return text
