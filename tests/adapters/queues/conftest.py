"""What all tests of consumers of queues need: on a busy machine, each word takes its time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.adapters.queues.program import be_patient


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    # Of its own, since a test may undo its monkeypatch.
    with pytest.MonkeyPatch.context() as patch:
        be_patient(patch.setattr)
        yield
