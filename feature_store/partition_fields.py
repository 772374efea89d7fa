"""What a partition's `meta` says, by meaning: the part of it that goes into a snapshot and comes back. No I/O here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec


class PartitionFields(msgspec.Struct, frozen=True):
    """See layout.py for what they mean."""

    sequence: int
    positions: dict[str, int] = {}  # by topic
    newest: dict[str, int] = {}  # by source
    generations: dict[str, list[int]] = {}  # by source
    before: dict[str, int] = {}  # by source
    backfill: dict[str, str] = {}  # by source


def fields_of(meta: Mapping[str, str]) -> PartitionFields:
    """From `meta` as it stands."""
    return PartitionFields(
        sequence=int(meta["sequence"]),
        positions={name: int(text) for name, text in _under(meta, "position:").items()},
        newest={name: int(text) for name, text in _under(meta, "newest:").items()},
        generations={name: [int(g) for g in text.split()] for name, text in _under(meta, "ids:").items()},
        before={name: int(text) for name, text in _under(meta, "before:").items()},
        backfill=_under(meta, "backfill:"),
    )


def meta_of(fields: PartitionFields) -> dict[str, str]:
    """As `meta` has them."""
    return {
        "sequence": str(fields.sequence),
        **{f"position:{name}": str(number) for name, number in fields.positions.items()},
        **{f"newest:{name}": str(number) for name, number in fields.newest.items()},
        **{f"ids:{name}": " ".join(map(str, numbers)) for name, numbers in fields.generations.items()},
        **{f"before:{name}": str(number) for name, number in fields.before.items()},
        **{f"backfill:{name}": text for name, text in fields.backfill.items()},
    }


def joined(parts: Sequence[PartitionFields]) -> PartitionFields:
    """Of partitions whose products are dealt out anew: their positions mean nothing any more, everything else is the
    latest of all."""
    return PartitionFields(
        sequence=max((part.sequence for part in parts), default=0),
        newest=_latest([part.newest for part in parts]),
        generations={
            source: sorted({g for part in parts for g in part.generations.get(source, [])})
            for source in {source for part in parts for source in part.generations}
        },
        before=_latest([part.before for part in parts]),
        backfill={source: text for part in parts for source, text in part.backfill.items()},
    )


def _latest(parts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: max(part[name] for part in parts if name in part) for name in {n for part in parts for n in part}}


def _under(meta: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): text for name, text in meta.items() if name.startswith(prefix)}
