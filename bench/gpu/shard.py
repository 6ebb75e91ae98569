"""A plugin of pytest: `-p bench.gpu.shard --shard 1/4` runs every fourth test, from the second on."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", default="0/1", help="index/number of shards")


@pytest.hookimpl(trylast=True)  # after tests are deselected by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    index, count = map(int, config.getoption("--shard").split("/"))
    items[:] = items[index::count]
