"""The text of sums, against a reading of it by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from feature_store.chunks import CHUNK, LARGE, chunk_fields, oldest_chunks, pack_sums, unpack_hash
from feature_store.features import FEATURES, SOURCE_FEATURES
from feature_store.layout import MAX_EXACT, STORED_FREQS
from tests.feature_store.stores import KEEP_ALL, Added, by_source

LETTERS = {"m": ("5m", 0), "h": ("1h", 0), "d": ("1d", 0)}
FIRST_COLUMN = {"o": 0, "c": 4, "r": 6}
SERIES = ("mug", "pot", "jug")
EXACT = st.one_of(st.integers(-MAX_EXACT + 1, MAX_EXACT - 1), st.integers(-9, 9), st.just(0))
CELLS = st.dictionaries(
    st.tuples(st.sampled_from(STORED_FREQS), st.sampled_from(SERIES), st.integers(-300, 300) | st.integers(0, 10**7)),
    st.lists(EXACT, min_size=8, max_size=8).filter(any),
    max_size=12,
)
Cells = dict[tuple[str, str, int], list[int]]


def read_by_hand(series_id: str, field: str, text: str, into: Cells) -> None:
    """Add a chunk's rows to cells, as the documentation of chunks says."""
    freq = {"m": "5m", "h": "1h", "d": "1d"}[field[0]]
    size = {"5m": 48, "1h": 72, "1d": 64}[freq]
    for row in text.rstrip(";").split(";"):
        place, _, values = row.partition(":")
        cell = into.setdefault((freq, series_id, int(field[2:]) * size + int(place)), [0] * 8)
        for column, value in enumerate(values.split(","), start={"o": 0, "c": 4, "r": 6}[field[1]]):
            cell[column] += int(value.replace("k", "000"))


def added(cells: Cells) -> list[Added]:
    return [Added(freq, name, [[bucket, *values]], KEEP_ALL) for (freq, name, bucket), values in cells.items()]


@given(CELLS)
def test_every_sum_is_in_the_text_once(cells: Cells) -> None:
    packed = pack_sums(by_source(added(cells), SERIES))
    found: Cells = {}
    owners = np.repeat(packed.series, packed.counts).tolist()
    for owner, field, text in zip(owners, packed.fields, packed.rows, strict=True):
        read_by_hand(SERIES[owner], field, text, found)
    assert found == cells
    assert len(set(zip(owners, packed.fields, strict=True))) == len(packed.fields)
    assert packed.series == sorted({SERIES.index(name) for _, name, _ in cells})
    large = {n for n, text in enumerate(packed.rows) if any(abs(number) >= LARGE for number in numbers_of(text))}
    assert set(packed.large) == large


def numbers_of(text: str) -> list[int]:
    rows = text.replace("k", "000").rstrip(";").split(";")
    return [int(value) for row in rows for value in row.partition(":")[2].split(",")]


@given(CELLS)
def test_a_hash_reads_back_as_what_was_packed(cells: Cells) -> None:
    cells = {(freq, "mug", bucket): values for (freq, _, bucket), values in cells.items()}
    packed = pack_sums(by_source(added(cells), ["mug"]))
    flat = [part.encode() for pair in zip(packed.fields, packed.rows, strict=True) for part in pair]
    found = unpack_hash(flat)
    for freq in STORED_FREQS:
        expected = {bucket: values for (f, _, bucket), values in cells.items() if f == freq}
        assert found[freq].bucket.tolist() == sorted(expected)
        assert found[freq].values.tolist() == [expected[bucket] for bucket in sorted(expected)]
        assert found[freq].values.shape == (len(expected), len(FEATURES))


def test_rows_of_one_bucket_add_up() -> None:
    found = unpack_hash([b"ho2", b"5:1k,0,1,20;0:1,2,3,4;5:500,-7,2,30;", b"hc2", b"+5:3,4;", b"dr0", b"0:1,5;"])
    assert found["1h"].bucket.tolist() == [144, 149]
    assert found["1h"].values.tolist() == [[1, 2, 3, 4, 0, 0, 0, 0], [1500, -7, 3, 50, 3, 4, 0, 0]]
    assert found["1d"].values.tolist() == [[0, 0, 0, 0, 0, 0, 1, 5]]
    assert len(found["5m"].bucket) == 0


@given(st.sampled_from(STORED_FREQS), st.integers(-500, 500), st.integers(0, 500))
def test_the_fields_of_a_stretch_are_those_of_its_buckets(freq: str, first: int, length: int) -> None:
    letter = {"5m": "m", "1h": "h", "1d": "d"}[freq]
    first_chunk, chunks, fields = chunk_fields(freq, first, first + length)
    numbers = sorted({bucket // CHUNK[freq] for bucket in range(first, first + length + 1)})
    assert (first_chunk, chunks) == (numbers[0], len(numbers))
    assert fields == [f"{letter}{source[0]}{number}" for source in SOURCE_FEATURES for number in numbers]


def test_a_chunk_is_kept_while_one_of_its_buckets_is() -> None:
    oldest = {"1h": np.array([KEEP_ALL, 71, 72, 143, 144]), "1d": np.array([0, 0, 0, 0, 64])}
    assert oldest_chunks(oldest, [1, 2, 3, 4]) == {"h": [0, 1, 1, 2], "d": [0, 0, 0, 1]}
