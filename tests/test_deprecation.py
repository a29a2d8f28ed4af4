"""The helper for old names, on a tiny module that has some."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from servicegroup._deprecation import renamed_keyword

SHOP = """
from servicegroup._deprecation import deprecated, renamed_keyword

class Till:
    @renamed_keyword("money", "change", since="0.2", until="1.0")
    def __init__(self, name, *, change=0):
        self.name, self.change = name, change

def __getattr__(name):
    if name == "Cashier":
        deprecated("shop.Cashier", "shop.Till", since="0.2", until="1.0")
        return Till
    raise AttributeError(name)
"""


@pytest.fixture(params=["shop.py", "shop/__init__.py"])
def shop(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    """A module, and a package: `from … import …` asks them for names in different ways."""
    file = tmp_path / request.param
    file.parent.mkdir(exist_ok=True)
    file.write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    import shop  # type: ignore[import-not-found]  # it is made above

    yield shop
    del sys.modules["shop"]


def line() -> int:
    """Of whoever calls."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def test_an_old_keyword_works_and_warns_at_the_line_of_the_caller(shop: ModuleType) -> None:
    with pytest.warns(DeprecationWarning, match="money") as caught:
        till, here = shop.Till("left", money=5), line()
    assert (till.name, till.change) == ("left", 5)
    (warning,) = caught
    assert (warning.filename, warning.lineno) == (__file__, here)
    assert str(warning.message) == (
        "Till.__init__(money=…) is deprecated since servicegroup 0.2, and gone in 1.0: use change="
    )


def test_the_new_keyword_is_silent(shop: ModuleType) -> None:
    with warnings.catch_warnings(action="error"):
        assert shop.Till("left", change=5).change == 5
        assert shop.Till("left").change == 0


def test_both_keywords_are_refused(shop: ModuleType) -> None:
    with (
        pytest.warns(DeprecationWarning, match="money"),
        pytest.raises(TypeError, match="multiple values for keyword argument 'change'"),
    ):
        shop.Till("left", money=5, change=6)


def test_the_signature_has_the_new_keyword_only(shop: ModuleType) -> None:
    assert list(inspect.signature(shop.Till).parameters) == ["name", "change"]


def test_an_old_name_works_and_warns_at_the_line_that_uses_it(shop: ModuleType) -> None:
    with pytest.warns(DeprecationWarning, match="Cashier") as caught:
        cashier, here = shop.Cashier, line()
    assert cashier is shop.Till
    (warning,) = caught
    assert (warning.filename, warning.lineno) == (__file__, here)
    assert str(warning.message) == (
        "shop.Cashier is deprecated since servicegroup 0.2, and gone in 1.0: use shop.Till"
    )


@pytest.mark.usefixtures("shop")
def test_an_import_of_an_old_name_warns_at_its_line() -> None:
    with pytest.warns(DeprecationWarning, match="Cashier") as caught:
        from shop import Cashier  # noqa: F401
    assert {(one.filename, one.lineno) for one in caught} == {(__file__, line() - 1)}


def test_a_plain_function_may_be_decorated() -> None:
    @renamed_keyword("number", "count", since="0.2", until="1.0")
    def order(item: str, count: int = 1) -> str:
        return item * count

    assert order("a") == "a"
    assert order("a", count=2) == order("a", 2) == "aa"
