"""For the tests of services and of the programs made of them; docs/testing.md shows how.

Nothing here needs pytest. Its plugin, `pytest_servicegroup`, adds fixtures, and fails a test that
leaves a group's thread behind or lets a group's failure get lost.
"""

from servicegroup.testing._clock import FakeClock
from servicegroup.testing._kill import Kills, Life, kill_at_random
from servicegroup.testing._lifo import assert_stopped_lifo
from servicegroup.testing._port import find_free_port
from servicegroup.testing._services import Fails, Hangs, NeverReady, Returns, Runs
from servicegroup.testing._wait import wait_until

__all__ = [
    "Fails",
    "FakeClock",
    "Hangs",
    "Kills",
    "Life",
    "NeverReady",
    "Returns",
    "Runs",
    "assert_stopped_lifo",
    "find_free_port",
    "kill_at_random",
    "wait_until",
]
