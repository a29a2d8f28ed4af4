"""A gRPC server, of either kind."""

from __future__ import annotations

from servicegroup import ServiceGroup
from servicegroup.adapters.grpc import GrpcAioServer, GrpcServer
from tests.adapters.programs.common import OPTIONS, run
from tests.adapters.rpcs import aio_register, register


class Threads(GrpcServer):
    @property
    def url(self) -> str:  # that is looked for by the tests
        return f"grpc://{super().url}"


class Tasks(GrpcAioServer):
    @property
    def url(self) -> str:
        return f"grpc://{super().url}"


def make(group: ServiceGroup) -> Threads | Tasks:
    options = {"port": 0, **OPTIONS["server"]}
    if options.pop("aio", False):
        return Tasks(aio_register, **options)
    return Threads(register, **options)


if __name__ == "__main__":
    run(make)
