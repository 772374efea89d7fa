"""Who may import whom. Imports are read from the source, those inside functions too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("feature_store", "forecaster", "worker", "triton_models")

# Imports point one way.
MAY_IMPORT = {
    "feature_store": {"feature_store"},
    "forecaster": {"feature_store", "forecaster"},
    "worker": {"feature_store", "forecaster", "worker"},
    "triton_models": {"feature_store", "forecaster"},
}

# One home a library; a folder stands for all below it.
TORCH_SIDE = (
    "forecaster/checkpoints.py",
    "forecaster/evaluate.py",
    "forecaster/explain.py",
    "forecaster/export.py",
    "forecaster/fitting.py",
    "forecaster/loader.py",
    "forecaster/models/",
    "forecaster/onnx_files.py",
    "forecaster/passes.py",
    "forecaster/predictor.py",
    "forecaster/run_folder.py",
    "forecaster/simulate.py",
    "forecaster/text.py",
    "forecaster/train.py",
    "forecaster/train_gbm.py",
    "forecaster/training_state.py",
    "forecaster/tune.py",
)
HOMES = {
    "faust": ("worker/app.py", "worker/faust_app.py", "worker/transport.py"),
    "mode": ("worker/app.py", "worker/transport.py"),
    "aiokafka": ("worker/app.py", "worker/transport.py"),
    "redis": ("feature_store/redis_calls.py", "feature_store/redis_cluster.py"),
    "tritonclient": ("worker/forecast_client.py",),
    "torch": (*TORCH_SIDE, "triton_models/"),
    "accelerate": ("forecaster/fitting.py",),
    "transformers": (*TORCH_SIDE, "triton_models/"),
    "safetensors": (*TORCH_SIDE, "triton_models/"),
    "triton_python_backend_utils": ("triton_models/",),
    "jinja2": ("forecaster/evaluation_report.py", "forecaster/simulation_report.py", "worker/backtest_report.py"),
    "matplotlib": (
        "forecaster/plot_style.py",
        "forecaster/evaluation_plots.py",
        "forecaster/simulation_plots.py",
        "worker/backtest_plots.py",
    ),
    "statsforecast": ("forecaster/baselines_statsforecast.py",),
    "mlforecast": ("forecaster/baselines_mlforecast.py",),
    "lightgbm": ("forecaster/baselines_mlforecast.py", "forecaster/models/"),
    "pandas": ("forecaster/baselines_mlforecast.py",),
    "prometheus_client": ("worker/metrics.py",),
    # Whoever talks to the broker beside the Faust app: topics, the shop's calendar, recordings, replays, checks,
    # retries of dead letters, orders, demo, local stack, the transport's reader, and the watchdog, which must not
    # depend on the app's own connection.
    "confluent_kafka": (
        "worker/demo_watch.py",
        "worker/global_calendar.py",
        "worker/local_stack.py",
        "worker/partitioner_check.py",
        "worker/record_fetcher.py",
        "worker/record_span.py",
        "worker/replay.py",
        "worker/replay_topics.py",
        "worker/replayer.py",
        "worker/replenish.py",
        "worker/replenishment_stream.py",
        "worker/retry.py",
        "worker/topic_reading.py",
        "worker/topic_recorder.py",
        "worker/topics.py",
        "worker/watchdog.py",
    ),
}

# Modules of worker know these, and nothing else of worker ...
SHARED_BASE = {"errors", "metrics", "records", "schemas", "settings"}
# ... of which one needs another.
BASE_IMPORTS = {
    "errors": set[str](),
    "metrics": set[str](),
    "records": set[str](),
    "schemas": set[str](),
    "settings": {"errors"},
}
# One concept in several files: a lane, its parts, and who begins and ends lanes; who makes forecasts and what is sent
# of them; the transport and its reader; dead letters, how they are mended and how they are sent again; the recorder of
# topics, where it begins and ends, and what it takes out of values; orders, their policies and their topics.
PAIRS = {
    "lane": {"aside", "held_records", "lane_state", "reject_watch"},
    "lane_state": {"aside"},
    "lane_keeper": {"lane", "lane_state", "held_records"},
    "alert_table": {"alert_evidence", "alert_levels"},
    "alerts": {"alert_evidence", "alert_levels", "alert_table"},
    "alert_messages": {"alert_evidence", "alert_levels", "alert_table", "alerts"},
    "forecast_messages": {
        *("alert_messages", "alert_table", "calibration", "challenger", "scored_forecasts", "scoring", "sold"),
    },
    "accuracy_messages": {"scoring"},
    "accuracy_windows": {"accuracy_messages", "scoring"},
    "accuracy_reports": {
        *("accuracy_messages", "accuracy_windows", "alert_sending", "aside", "drift", "input_drift"),
        *("input_sums", "scoring"),
    },
    "drift": {"accuracy_messages", "cusum", "scoring"},
    "input_drift": {"cusum", "drift", "input_sums"},
    "comparison": {"challenger", "paired_test", "scoring"},
    "promotion": {"challenger", "comparison"},
    "promoter": {"aside", "comparison", "promotion"},
    "challenger": {"scored_forecasts", "scoring", "sold"},
    "scored_forecasts": {"accuracy_messages", "input_sums", "scoring", "sold"},
    "rules": {
        *("accuracy_reports", "alert_levels", "alert_table", "challenger", "forecast_messages", "lane_state"),
        *("scoring", "silence", "silence_watch", "transport"),
    },
    "silence_watch": {"alert_sending", "silence"},
    "scheduler": {
        "alert_messages",
        "alert_sending",
        "aside",
        "calibration",
        "challenger",
        "forecast_messages",
        "scoring",
        "sold",
    },
    "transport": {"record_fetcher"},
    "dead_letters": {"topic_reading"},
    "mending": {"dead_letters", "topic_reading"},
    "retry": {"dead_letters", "mending", "topic_reading"},
    "topic_recorder": {"record_span", "redaction"},
    "replay_topics": {"replayer", "topic_reading", "topics"},
    "table_import": {"tables"},
    "table_mappings": {"tables"},
    "backfill_tables": {"tables"},
    "recorded_snapshot": {"snapshot"},
    "replenishment": {"replenishment_orders", "replenishment_policies"},
    "replenishment_orders": {"replenishment_policies"},
    "replenishment_records": {"replenishment", "replenishment_orders"},
    "replenishment_stream": {"replenishment", "replenishment_records", "topic_reading"},
}
# Commands and composition roots wire the rest, and only they import each other.
ROOTS = {
    "__main__",
    "accuracy",
    "app",
    "backfill",
    "backtest",
    "check",
    "cli",
    "contest",
    "demo",
    "dlq",
    "export",
    "faust_app",
    "features_export",
    "forecast",
    "model",
    "promote",
    "record",
    "recording",
    "replay",
    "replenish",
    "restore",
    "run",
    "show",
    "snapshot",
    "testing",
    "train",
    "up",
    "write_schemas",
}
ROOT_PREFIXES = ("backtest_", "demo_", "dlq_", "local_")

# os.environ is read at the entry points, and handed on to processes by those who start some.
READ_ENVIRONMENT = {
    "worker/accuracy.py",
    "worker/backfill.py",
    "worker/backtest.py",
    "worker/check.py",
    "worker/dlq.py",
    "worker/features_export.py",
    "worker/model.py",
    "worker/promote.py",
    "worker/record.py",
    "worker/recording.py",
    "worker/replay.py",
    "worker/replenish.py",
    "worker/restore.py",
    "worker/run.py",
    "worker/show.py",
    "worker/snapshot.py",
    "worker/train.py",
}
HAND_ENVIRONMENT_ON = {"worker/local_server.py", "worker/local_triton.py"}


def sources() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def tree_of(source: str) -> ast.Module:
    return ast.parse((ROOT / source).read_text(encoding="utf-8"))


def imports_of(source: str) -> set[str]:
    """Dotted names: of `from a.b import c` both a.b and a.b.c, since c may be a module."""
    names: set[str] = set()
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: imports are absolute"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def worker_imports(module: str) -> set[str]:
    """Siblings that a module of worker imports."""
    names = imports_of(f"worker/{module}.py")
    return {sibling for sibling in worker_modules() if f"worker.{sibling}" in names}


def worker_modules() -> set[str]:
    return {path.stem for path in (ROOT / "worker").glob("*.py")} - {"__init__"}


def is_root(module: str) -> bool:
    return module in ROOTS or module.startswith(ROOT_PREFIXES)


@pytest.mark.parametrize("source", sources())
def test_imports_point_one_way(source: str) -> None:
    ours = {name.partition(".")[0] for name in imports_of(source)} & set(PACKAGES)
    assert ours <= MAY_IMPORT[source.partition("/")[0]]


@pytest.mark.parametrize("library", HOMES)
def test_a_library_has_one_home(library: str) -> None:
    users = {source for source in sources() if library in {name.partition(".")[0] for name in imports_of(source)}}
    assert users, f"{library} is no longer used: take it out of this table"
    assert [source for source in users if not source.startswith(HOMES[library])] == []


@pytest.mark.parametrize("module", sorted(worker_modules()))
def test_siblings_do_not_import_each_other(module: str) -> None:
    if is_root(module):
        return
    assert worker_imports(module) <= BASE_IMPORTS.get(module, SHARED_BASE) | PAIRS.get(module, set())


def test_the_worker_imports_no_module_that_needs_torch() -> None:
    for source in sources():
        if source.startswith("worker/"):
            files = {name.replace(".", "/") for name in imports_of(source)}
            assert [f for f in files if f.startswith("forecaster/") and f"{f}.py".startswith(TORCH_SIDE)] == [], source


def uses_environment(source: str) -> bool:
    names = {"environ", "environb", "getenv", "putenv"}
    attributes = {node.attr for node in ast.walk(tree_of(source)) if isinstance(node, ast.Attribute)}
    return bool(names & attributes) or any(name in imports_of(source) for name in (f"os.{name}" for name in names))


def test_the_environment_is_read_at_the_entry_points_only() -> None:
    assert {source for source in sources() if uses_environment(source)} == READ_ENVIRONMENT | HAND_ENVIRONMENT_ON


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after a statement, which may not open a connection."""
    program = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('importing opened a connection')\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.socket.bind = refuse\n"
        f"{statement}\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_worker_loads_no_torch() -> None:
    loaded = loaded_by("import worker.faust_app, worker.check, worker.show, worker.run, worker.cli")
    assert {"faust", "redis", "tritonclient"} <= loaded
    assert loaded.isdisjoint({"torch", "transformers", "safetensors", "pyarrow"})


def test_the_command_loads_no_library_before_it_knows_which_it_needs() -> None:
    assert loaded_by("import worker.cli").isdisjoint({"faust", "redis", "tritonclient", "torch", "numpy", "rich"})


def test_features_are_computed_without_redis() -> None:
    modules = {path.stem for path in (ROOT / "feature_store").glob("*.py")} - {
        *("__init__", "fitness", "redis_calls", "redis_cluster", "store"),
        *(
            "accuracy_store",
            "backfill_marks",
            "model_choices",
            "partition_copy",
            "partition_restore",
            "snapshots",
            "stream_store",
        ),
    }
    loaded = loaded_by("import " + ", ".join(f"feature_store.{module}" for module in sorted(modules)))
    assert loaded.isdisjoint({"redis", "faust", "aiokafka", "torch"})
    assert "redis" in loaded_by("import feature_store.store")
