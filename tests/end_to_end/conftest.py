"""A home for each module of tests, and the real matches where they are."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from home import REAL, Home

from payments_pipeline.local.stack import attached


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Its servers stay up between commands: each attaches to them."""
    found = Home(tmp_path_factory.mktemp("home"))
    with attached(found.path, ("postgres", "sandbox")):
        yield found


@pytest.fixture
def real_data() -> Path:
    if not REAL.exists():
        pytest.skip("the real matches are not beside this checkout")
    return REAL
