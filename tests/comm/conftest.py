"""Ranks that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from wolong_fx.testing.ranks import Ranks, ranks_of


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    with ranks_of(request.param) as found:
        yield found


@pytest.fixture(scope="module")
def pair() -> Iterator[Ranks]:
    with ranks_of(2) as found:
        yield found
