"""Programs that the tests need and pip does not bring: they come from Debian's packages."""

from __future__ import annotations

import os
import shutil

import pytest


def require(program: str, package: str | None = None) -> str:
    """Where `program` is. Without it the test is skipped; where CI is true, it fails."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is not None:
        return path
    reason = f"{program} is missing: install Debian's package {package or program}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
