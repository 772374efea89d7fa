"""What the README names exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from worker.cli import shelfcast
from worker.settings import Settings
from worker.topics import wanted_topics

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PATH = re.findall(r"^\| \d \| `([\w.]+)` \|", README, flags=re.MULTILINE)


def test_the_path_of_one_order_has_at_most_eight_functions() -> None:
    assert 5 <= len(PATH) <= 8


@pytest.mark.parametrize("name", PATH)
def test_each_function_on_the_path_of_one_order_exists(name: str) -> None:
    parts = name.split(".")
    found: object = importlib.import_module(".".join(parts[:2]))
    for part in parts[2:]:
        found = getattr(found, part)
    assert callable(found)


def test_commands_that_the_readme_names_exist() -> None:
    named = set(
        re.findall(r"`?shelfcast ([a-z]+)\b[^-]", " ".join(re.findall(r"`[^`]+`|^    .+$", README, re.MULTILINE)))
    )
    assert named
    assert named <= set(shelfcast.list_commands(None))  # type: ignore[arg-type]


def test_topics_in_the_table_are_the_defaults() -> None:
    named = set(re.findall(r"^\| `([a-z_.]+v1)` \|", README, flags=re.MULTILINE))
    defaults = {topic.name for topic in wanted_topics(Settings()) if not topic.name.endswith((".dlq", ".late"))}
    assert named == defaults
