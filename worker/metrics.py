"""Every metric: name, type, unit and meaning. Dashboards and documents name only these."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server

REGISTRY = CollectorRegistry()

EVENTS = Counter("shelfcast_events", "Records counted in the features.", ["source"], registry=REGISTRY)
REJECTS = Counter("shelfcast_rejects", "Records sent to a dead-letter topic.", ["source", "reason"], registry=REGISTRY)
LATE = Counter(
    "shelfcast_late", "Events older than what is retained, sent to a .late topic.", ["source"], registry=REGISTRY
)
DUPLICATES = Counter(
    "shelfcast_duplicates",
    "Events dropped since one with the same event_id was counted within the window.",
    ["source"],
    registry=REGISTRY,
)
COUNTED_BEFORE = Counter(
    "shelfcast_counted_before",
    "Live events dropped since a table that the features were filled from holds them.",
    ["source"],
    registry=REGISTRY,
)
LOST = Counter(
    "shelfcast_lost_offsets", "Offsets that Kafka no longer held when they were due.", ["source"], registry=REGISTRY
)
FORECASTS = Counter("shelfcast_forecasts", "Forecasts acknowledged by Kafka.", ["freq", "degraded"], registry=REGISTRY)
CALIBRATION_OUTCOMES = Counter(
    "shelfcast_calibration_outcomes",
    "Forecast buckets that have closed, by where sales fell: below the 10 % quantile, inside, or above the 90 % one; "
    "what equals a quantile in parts. A tenth, eight tenths and a tenth are as promised.",
    ["freq", "place"],
    registry=REGISTRY,
)
ALERTS = Counter(
    "shelfcast_alerts",
    "Alert messages acknowledged by Kafka.",
    ["kind", "episode_state", "severity"],
    registry=REGISTRY,
)
STREAM_SILENCE = Gauge(
    "shelfcast_stream_silence_s",
    "Seconds since the last event of a source in the whole shop; of the worker that runs partition 0.",
    ["source"],
    registry=REGISTRY,
)
SCORED = Counter(
    "shelfcast_scored_steps",
    "Forecast steps whose bucket has closed and which were scored.",
    ["freq", "model_version"],
    registry=REGISTRY,
)
CHALLENGES = Counter(
    "shelfcast_challenges",
    "Forecasts that a challenger was asked about too, by outcome: asked, left_out since it was busy, away.",
    ["freq", "outcome"],
    registry=REGISTRY,
)
PROMOTIONS = Counter("shelfcast_promotions", "Challengers that this worker has promoted by rule.", registry=REGISTRY)
ACCURACY = Gauge(
    "shelfcast_accuracy_sums",
    "Sums of scores over the last 7 days that were scored, as in docs/accuracy.md: measures are ratios of them, summed "
    "over partitions. Thousandths of a unit; squared_error of a unit squared, quantile_loss millionths, others counts.",
    ["partition", "freq", "step", "model_version", "sum"],
    registry=REGISTRY,
)
OWED = Gauge("shelfcast_forecasts_owed", "Touched items whose forecast is owed.", ["freq"], registry=REGISTRY)
LANES = Gauge("shelfcast_lanes", "Partitions this worker runs.", registry=REGISTRY)
CLAIMS = Counter("shelfcast_claims", "Partitions claimed, by why.", ["reason"], registry=REGISTRY)
MODEL_SECONDS = Histogram(
    "shelfcast_model_seconds",
    "Time of one request to the model server, in seconds.",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
    registry=REGISTRY,
)
BATCH_SECONDS = Histogram(
    "shelfcast_batch_seconds",
    "Time from a batch's arrival in its lane to its position being stored, in seconds.",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 30),
    registry=REGISTRY,
)
REPLENISHMENTS = Counter("shelfcast_replenishments", "Orders acknowledged by Kafka.", ["policy"], registry=REGISTRY)
REPLENISHMENT_REVIEWS = Counter(
    "shelfcast_replenishment_reviews",
    "Items looked at by `shelfcast replenish`: ordered, or covered by what is there.",
    ["outcome"],
    registry=REGISTRY,
)
REPLENISHMENT_REFUSED = Counter(
    "shelfcast_replenishment_refused", "Records that could not be used for orders.", ["source"], registry=REGISTRY
)


def exposition() -> str:
    """All of them as Prometheus reads them."""
    return generate_latest(REGISTRY).decode()


def serve(host: str, port: int) -> None:
    """Answer GET /metrics from a thread of its own, for commands that have no web server."""
    start_http_server(port, host, REGISTRY)
