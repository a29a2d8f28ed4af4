"""[HOST:]PORT, as it is typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    AddressType = click.ParamType[tuple[str, int]]
else:
    AddressType = click.ParamType  # generic from click 8.4 on only


class Address(AddressType):
    """Converted to host and port; without a host, it is loopback."""

    name = "[HOST:]PORT"

    def convert(
        self,
        value: str | tuple[str, int],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, int]:
        """`click.BadParameter` when the port is none."""
        if isinstance(value, tuple):
            return value
        host, _, port = value.rpartition(":")
        if not (port.isascii() and port.isdigit() and int(port) < 65536):
            self.fail(f"{value!r} does not end with a port from 0 to 65535", param, ctx)
        return host.strip("[]") or "127.0.0.1", int(port)
