"""The ASGI application without httptools, as after `pip install 'servicegroup[asgi]'`."""

from __future__ import annotations

from tests.adapters.programs.asgi import make
from tests.adapters.programs.common import OPTIONS, run

if __name__ == "__main__":
    OPTIONS["server"]["http"] = "h11"
    run(make)
