"""What is built of this tree, and environments to install it in. Nothing of it needs a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MADE = ("__pycache__", "*.egg-info", "_build", "build", "dist")


def copy_tree(to: Path) -> Path:
    """The tree without what was made of it: a build writes beside the sources."""
    return shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(".*", *MADE))


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """What a command says that must end well."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def build(source: Path, to: Path, *options: str) -> str:
    """Build an sdist, and a wheel of that, with the setuptools that is installed here."""
    command = (sys.executable, "-m", "build", "--no-isolation", *options, "--outdir")
    return run(*command, to, source, PYTHONDONTWRITEBYTECODE="")  # of which setuptools would warn


def environment(directory: Path) -> Path:
    """A new one that finds what is installed here; its python."""
    venv.create(directory, symlinks=True)
    borrow(directory)
    return directory / "bin" / "python"


def borrow(directory: Path) -> None:
    """Let that environment find what is installed here, but for what is editable.

    Such has a path file here, which is not read when the directory itself comes from a path file.
    """
    (site,) = directory.glob("lib/python*/site-packages")
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "borrowed.pth").write_text("\n".join(sorted(here)), encoding="utf-8")


def install(python: Path, wheel: Path) -> None:
    """Install it, and nothing that it needs."""
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel)
