"""Charts are drawn by a program of its own, and many tests share the machine: pages are given their time."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect


@pytest.fixture(autouse=True, scope="session")
def patient() -> Iterator[None]:
    expect.set_options(timeout=60_000)
    yield
    expect.set_options(timeout=None)
