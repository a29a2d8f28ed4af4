"""`stacks`: where the threads of a program are."""

from __future__ import annotations

from click.testing import CliRunner

from servicegroup.cli.stacks import command
from tests.cli.admin import Waits, answering, running


def test_the_stacks_are_printed() -> None:
    with running(Waits()) as shop:
        result = CliRunner().invoke(command, [shop.port])
    assert result.exit_code == 0
    assert "thread 'shop/Waits' is at:\n" in result.output
    assert "self.stopping.wait()\n" in result.output


def test_where_something_else_answers_it_says_so() -> None:
    with answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as port:
        result = CliRunner().invoke(command, [port])
    assert result.exit_code == 3
    assert result.output == (
        f"Error: http://127.0.0.1:{port} does not answer as an AdminServer does: "
        "it answers 404 to /stacks: Not Found\n"
    )
