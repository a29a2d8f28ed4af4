"""MODULE:NAME: what it may name, and what is said of what it may not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import SHOP, Command, environment, write

THINGS = """
    import threading
    from functools import partial
    from types import SimpleNamespace

    from servicegroup import AsyncGroup, Service, ServiceGroup, with_start

    def make(name="made", wait=None):
        made = ServiceGroup(name=name)
        made.add(with_start(lambda stopping: stopping.wait()), name="a")
        return made

    class Shop(ServiceGroup):
        def __init__(self):
            super().__init__(name="of a class")
            self.add(with_start(lambda: None), name="a")

    class Api(Service):
        pass

    def needs(port): ...
    async def coroutine(): ...
    def nothing(): ...

    bound = partial(make, "bound")
    app = SimpleNamespace(group=make("of an attribute"))
    service = with_start(lambda: None)
    loop = AsyncGroup()
    text = "shop"
"""


def check(directory: Path, target: str, code: int = 1) -> str:
    """What `servicegroup check` says of `target`."""
    with Command(directory, "check", target) as child:
        assert child.end() == code, child.stderr
        return child.stderr if code else child.lines[0]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("shop:make", "made"),
        ("shop:bound", "bound"),
        ("shop:Shop", "of a class"),
        ("shop:app.group", "of an attribute"),
    ],
)
def test_a_group_is_found_or_made(tmp_path: Path, target: str, name: str) -> None:
    write(tmp_path, THINGS)
    assert check(tmp_path, target, 0) == f"group {name!r}: nothing was started"


def test_a_group_in_a_package_is_found(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    write(tmp_path / "pkg", THINGS, name="web")
    assert "'made'" in check(tmp_path, "pkg.web:make", 0)
    assert "No module named 'pkg.wbe'" in check(tmp_path, "pkg.wbe:make")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("shop", "'shop' is not MODULE:NAME, as shop:group would be"),
        ("shop:", "'shop:' is not MODULE:NAME"),
        (":group", "':group' is not MODULE:NAME"),
        (".shop:group", "'.shop:group' is not MODULE:NAME"),
        ("shop.py:make", "'shop.py' is a file, and a module is meant: shop:make"),
        ("src/shop.py", "'src/shop.py' is a file, and a module is meant: src.shop:NAME"),
        ("shopp:make", "No module named 'shopp'; did you mean shop?"),
        ("nowhere:make", "No module named 'nowhere', neither here nor on sys.path"),
        ("shop:grop", "has no 'grop'; "),
        ("shop:app.grop", "has no 'app.grop'; "),
        ("shop:text", "shop:text is 'shop', of type str; MODULE:NAME names a ServiceGroup"),
        ("shop:service", "shop:service is a service (<servicegroup.service._Pair object"),
        ("shop:loop", "shop:loop is a service (<servicegroup._aio_group.AsyncGroup object"),
        ("shop:Api", "shop:Api is the class Api; MODULE:NAME names a ServiceGroup"),
        ("shop:needs", "shop:needs needs arguments (port)"),
        ("shop:coroutine", "shop:coroutine is a coroutine function"),
        ("shop:nothing", "shop:nothing() returned None, of type NoneType; MODULE:NAME names"),
        ("shop:threading", "of type module; MODULE:NAME names"),
    ],
)
def test_a_wrong_target_is_told_from_what_is_meant(tmp_path: Path, target: str, said: str) -> None:
    write(tmp_path, THINGS)
    text = check(tmp_path, target)
    assert text.startswith("Error: ")
    assert said in text
    assert "Traceback" not in text


def test_a_wrong_name_is_followed_by_those_of_the_groups_there(tmp_path: Path) -> None:
    write(tmp_path, SHOP, "other = ServiceGroup()")
    text = check(tmp_path, "shop:grop")
    assert f"module 'shop' ({tmp_path / 'shop.py'}) has no 'grop'" in text
    assert text.endswith("there is shop:group, shop:other\n")


def test_a_module_of_the_standard_library_that_hides_ones_own_is_named_with_its_file(
    tmp_path: Path,
) -> None:
    write(tmp_path, SHOP, name="os")  # loaded before anything is looked for
    assert f"module 'os' ({os.__file__}) has no 'group'" in check(tmp_path, "os:group")


def test_an_error_of_the_import_shows_the_users_lines_only(tmp_path: Path) -> None:
    write(tmp_path, "def fails():\n    1 / 0\nfails()", name="below")
    write(tmp_path, "import below")
    text = check(tmp_path, "shop:group")
    assert text.splitlines()[-1] == (
        "Error: shop, when it is imported, raises ZeroDivisionError: division by zero"
    )
    files = [line.split('"')[1] for line in text.splitlines() if line.startswith("  File ")]
    assert files == [str(tmp_path / f"{name}.py") for name in ("shop", "below", "below")]


def test_an_error_of_the_function_shows_the_users_lines_only(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        from servicegroup import ServiceGroup

        def make():
            ServiceGroup().add(1)  # the line
    """,
    )
    text = check(tmp_path, "shop:make")
    assert "Error: shop:make() raises TypeError: service 'int' (int) has no start()" in text
    files = [line.split('"')[1] for line in text.splitlines() if line.startswith("  File ")]
    assert files == [str(tmp_path / "shop.py")]
    assert "# the line" in text


def test_a_syntax_error_is_shown_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, "group = (")
    text = check(tmp_path, "shop:group")
    assert text.startswith(f'  File "{tmp_path / "shop.py"}", line 1\n    group = (\n')
    assert "Error: shop, when it is imported, raises SyntaxError" in text


def test_a_library_that_is_missing_is_not_taken_for_a_wrong_target(tmp_path: Path) -> None:
    write(tmp_path, "import not_installed")
    text = check(tmp_path, "shop:group")
    assert "import not_installed" in text
    assert "Error: shop, when it is imported, raises ModuleNotFoundError" in text


@pytest.mark.parametrize(("code", "expected"), [("", 1), ("0", 1), ("3", 3), ("'no file'", 1)])
def test_sys_exit_of_an_import_is_an_error(tmp_path: Path, code: str, expected: int) -> None:
    write(tmp_path, f"import sys\nsys.exit({code})")
    text = check(tmp_path, "shop:group", expected)
    assert f"shop, when it is imported, calls sys.exit({code or None}); put what" in text
    assert f"    sys.exit({code})\n" in text


@pytest.mark.parametrize("last", ["group.run()", "group.start()", "with group: pass"])
@pytest.mark.parametrize("command", ["check", "run"])
def test_an_import_that_would_start_the_group_starts_nothing(
    tmp_path: Path, last: str, command: str
) -> None:
    write(tmp_path, SHOP, last)
    with Command(tmp_path, command, "shop:group") as child:
        assert child.end() == 1
        assert child.lines == []
        assert f"    {last}\n" in child.stderr
        assert 'below `if __name__ == "__main__":`' in child.stderr
        assert "group.py" not in child.stderr


@pytest.mark.parametrize(
    ("command", "last"),
    [
        *((command, last) for command in ("check", "run") for last in ("1 / 0", "group = 1")),
        ("check", "group = ServiceGroup()"),
    ],
)
def test_threads_started_by_a_failed_import_do_not_keep_the_process(
    tmp_path: Path, command: str, last: str
) -> None:
    write(tmp_path, SHOP, "threading.Thread(target=threading.Event().wait).start()", last)
    with Command(tmp_path, command, "shop:group") as child:
        assert child.end() == 1
        assert "Error: " in child.stderr


def test_ctrl_c_shows_where_a_slow_import_is(tmp_path: Path) -> None:
    write(tmp_path, SHOP, "say('importing'), threading.Event().wait()")
    with Command(tmp_path, "run", "shop:group", launcher=HANDLES_SIGINT) as child:
        child.wait_for("importing")
        child.send(signal.SIGINT)
        assert child.end() == 130
        assert "threading.Event().wait()\n" in child.stderr


# A job in the background ignores SIGINT, and so may whoever runs the tests.
HANDLES_SIGINT = (
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.argv[1], sys.argv[1:])",
)


def test_the_current_directory_goes_before_all_others(tmp_path: Path) -> None:
    for name in ("elsewhere", "here"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, THINGS, f"group = make({name!r})")
    elsewhere = os.pathsep.join([str(tmp_path / "elsewhere"), os.environ.get("PYTHONPATH", "")])
    root = str(Path(__file__).resolve().parent.parent.parent)
    for safe, found in (("", "here"), ("1", "elsewhere")):
        env = {
            "PYTHONPATH": os.pathsep.join([elsewhere, root]),
            **({"PYTHONSAFEPATH": safe} if safe else {}),
        }
        with Command(tmp_path / "here", "check", "shop:group", env=env) as child:
            assert child.end() == 0
            assert child.lines[0] == f"group {found!r}: nothing was started"


def test_the_installed_script_looks_in_the_current_directory_too(tmp_path: Path) -> None:
    for name in ("bin", "here"):
        (tmp_path / name).mkdir()
    write(tmp_path / "here", THINGS)
    script = tmp_path / "bin" / "servicegroup"
    script.write_text("from servicegroup.cli import main\nmain()\n")
    child = subprocess.run(
        [sys.executable, str(script), "check", "shop:make"],
        cwd=tmp_path / "here",
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.stdout.startswith("group 'made': nothing was started"), child.stderr
