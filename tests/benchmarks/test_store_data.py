"""What the store benchmark stores: every line once, in steps that one script can take."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.store_data import Lines, Steps, batches, read_online_retail
from benchmarks.store_shapes import decode
from feature_store.features import SOURCE_FEATURES
from feature_store.layout import MAX_KEYS
from worker import demo

BUCKET_MS = {"5m": 300_000, "1h": 3_600_000, "1d": 86_400_000}
SLICE = Path(demo.__file__).parent / "demo_data" / "online_retail_ii_march_2011.parquet"


def some_lines(count: int, products: int) -> Lines:
    random = np.random.default_rng(2)
    return Lines(
        "UTC",
        [f"p{n}" for n in range(products)],
        np.sort(random.integers(0, 9 * 86_400_000, size=count)),
        random.integers(0, products, size=count),
        random.integers(0, 5_000, size=(count, 4)),
    )


@pytest.mark.parametrize("how", [Steps(700, 2**62), Steps(20_000, 3_600_000), Steps(20_000, 2**62, with_ids=True)])
def test_every_line_is_in_one_step(how: Steps) -> None:
    lines = some_lines(9_000, 3_000)
    expected: Counter[tuple[str, str, int, int]] = Counter()
    for time_ms, product, values in zip(
        lines.event_time_ms.tolist(), lines.product.tolist(), lines.values, strict=True
    ):
        for freq, column in ((freq, column) for freq in BUCKET_MS for column in range(4)):
            expected[freq, f"p{product}", time_ms // BUCKET_MS[freq], column] += int(values[column])
    found: Counter[tuple[str, str, int, int]] = Counter()
    position, ids = -1, []
    for batch in batches(lines, how):
        assert batch.positions["orders"][0] == position
        position = batch.positions["orders"][1]
        assert len(batch.series) < MAX_KEYS
        for sums in batch.sums:
            for series, bucket, values in zip(sums.series.tolist(), sums.bucket.tolist(), sums.values, strict=True):
                for column, value in enumerate(values.tolist()):
                    found[sums.freq, batch.series[series], bucket, column] += value
        ids += [event_id for part in batch.event_ids for event_id in part.ids]
    assert found == expected
    assert position == len(lines)
    assert len(set(ids)) == (len(lines) if how.with_ids else 0)


def test_online_retail_keeps_sales_and_cancellations_apart() -> None:
    lines = read_online_retail(SLICE)
    units, returned, order_lines, revenue = lines.values.T
    assert lines.values.shape == (len(lines), SOURCE_FEATURES["orders"].stop)
    assert ((units > 0) != (returned > 0)).all()
    assert ((order_lines == 1) == (units > 0)).all()
    assert ((revenue > 0) == (units > 0)).all()


def test_other_shapes_hold_only_what_is_kept() -> None:
    raw = {b"ho0": b"5:1k,0,1,2k;", b"ho1": b"0:3k,0,1,4k;", b"hc1": b"0:7,8;", b"do0": b"1:1,2,3,4;"}
    kept = decode(raw, {"5m": 0, "1h": 72, "1d": 2})
    assert kept == {"5m": {}, "1h": {72: [3000, 0, 1, 4000, 7, 8, 0, 0]}, "1d": {}}
