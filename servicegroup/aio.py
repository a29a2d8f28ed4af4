"""Services that are coroutines, each in a loop of its own or many in one."""

from servicegroup._aio_group import AsyncGroup
from servicegroup._aio_service import AsyncService

__all__ = ["AsyncGroup", "AsyncService"]
