"""Files of environment variables."""

from __future__ import annotations

import click


def load_env(path: str) -> None:
    """Set the variables of a file of NAME=value; one that is set already keeps its value.

    Raises:
        click.ClickException: a line is none of that, or python-dotenv is missing.
    """
    try:
        from dotenv import load_dotenv
        from dotenv.parser import parse_stream
    except ImportError:
        raise click.ClickException(
            "--env-file needs python-dotenv: pip install 'servicegroup[cli]'"
        ) from None
    try:
        with open(path, encoding="utf-8") as file:
            wrong = [binding.original.line for binding in parse_stream(file) if binding.error]
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{path} is not UTF-8: {error}", param_hint="--env-file") from None
    if wrong:
        raise click.BadParameter(f"{path}:{wrong[0]} is no NAME=value", param_hint="--env-file")
    load_dotenv(path)
