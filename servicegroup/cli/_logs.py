"""The log of a program that the command line runs."""

from __future__ import annotations

import logging

_LINE = "%(asctime)s %(levelname)s %(message)s"
_LINE_OF_ANY = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure(log_format: str) -> None:
    """Write all that is logged, from INFO on, to stderr, as `text` or as `json`.

    To be called before the program is imported: its own configuration, if any, goes over this.
    """
    formatter = logging.Formatter(_LINE_OF_ANY)
    if log_format == "json":
        from servicegroup.cli._json_log import JsonFormatter

        formatter = JsonFormatter()
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def tell_of_group() -> None:
    """Write what the group logs, from INFO on, unless the program has seen to its log itself."""
    logger = logging.getLogger("servicegroup")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(_LINE))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
