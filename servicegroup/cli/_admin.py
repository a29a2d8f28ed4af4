"""What is asked of an `AdminServer`, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import SplitResult, urlsplit

import click
from attrs import frozen

URL = "http://127.0.0.1:9090"  # where an AdminServer listens that is told nothing else
ANSWER_SECONDS = 10.0
SILENT_SECONDS = 60.0  # a stream says something every 15, or its other end has gone


class NoAdminError(click.ClickException):
    """No admin server answers there as one does."""

    exit_code = 3


@frozen(kw_only=True)
class Admin:
    """An admin server. Any method raises `NoAdminError`."""

    url: str
    parts: SplitResult

    def text(self, path: str) -> str:
        """What it answers, as text."""
        return self._ask(path).decode(errors="replace")

    def json(self, path: str, also: int = 200) -> dict[str, object]:
        """What it answers, with 200 or with `also`, as JSON."""
        try:
            found: object = json.loads(self._ask(path, also))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self.stranger(f"its answer to {path} is no JSON")
        return found

    def events(self) -> Iterator[list[dict[str, object]]]:
        """What happens, as many at a time as have come; none when there is but a sign of life.

        The first such sign comes at once. It ends when the server ends it, or has gone.
        """
        with self._answer("/events") as answer:
            rest = b""
            while chunk := _more(answer):
                *whole, rest = (rest + chunk).split(b"\n\n")
                lines = [line for one in whole for line in one.split(b"\n")]
                try:
                    yield [json.loads(line[6:]) for line in lines if line.startswith(b"data: ")]
                except ValueError:
                    raise self.stranger("its events are no JSON") from None

    def stranger(self, why: str) -> NoAdminError:
        """What to raise when something else answers."""
        return NoAdminError(f"{self.url} does not answer as an AdminServer does: {why}")

    def _ask(self, path: str, also: int = 200) -> bytes:
        with self._answer(path, also) as answer:
            return answer.read()

    @contextmanager
    def _answer(self, path: str, also: int = 200) -> Iterator[HTTPResponse]:
        kind = HTTPSConnection if self.parts.scheme == "https" else HTTPConnection
        connection = kind(self.parts.hostname or "", self.parts.port, timeout=ANSWER_SECONDS)
        try:
            with closing(connection):
                where, accept = self.parts.path.rstrip("/") + path, "application/json, text/*"
                connection.request("GET", where, headers={"Accept": accept})
                if path == "/events" and connection.sock is not None:
                    connection.sock.settimeout(SILENT_SECONDS)
                with connection.getresponse() as answer:
                    self._check(answer, path, also)
                    yield answer
        except (OSError, HTTPException, ValueError) as error:
            raise self._unheard(error) from None

    def _check(self, answer: HTTPResponse, path: str, also: int) -> None:
        if answer.status in (401, 403, 407):
            raise NoAdminError(
                f"{self.url} answers {answer.status} {answer.reason}: something before the admin "
                "server asks who you are; ask the admin server itself"
            )
        if answer.status not in (200, also):
            said = answer.reason
            if answer.getheader("Content-Type", "").startswith("text/plain"):
                said = answer.read(200).decode(errors="replace").partition("\n")[0]
            raise self.stranger(f"it answers {answer.status} to {path}: {said}")

    def _unheard(self, error: Exception) -> NoAdminError:
        if isinstance(error, ConnectionRefusedError):
            why = "nobody listens there; servicegroup run --admin PORT does"
        elif isinstance(error, TimeoutError):
            why = f"there was no answer within {ANSWER_SECONDS:.0f} s"
        elif isinstance(error, OSError):
            why = error.strerror or str(error)
        else:
            return self.stranger(f"it does not speak HTTP ({type(error).__name__})")
        return NoAdminError(f"{self.url} does not answer: {why}")


def _more(answer: HTTPResponse) -> bytes:
    try:
        return answer.read1(65536)
    except (OSError, HTTPException):  # it was killed, or the network is gone
        return b""


def _admin(_context: click.Context, _param: click.Parameter, value: str) -> Admin:
    url = f"127.0.0.1:{value}" if value.isdecimal() else value
    url = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(url)
        right = parts.hostname and parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        right = False
    if not right:
        raise click.BadParameter(f"{value!r} is no address of an admin server, as {URL} is")
    return Admin(url=url.rstrip("/"), parts=parts)


# A URL, HOST:PORT, or a PORT of this machine.
argument = click.argument("admin", metavar="[URL]", default=URL, callback=_admin)
