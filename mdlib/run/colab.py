"""Colab: install what the course misses there, and leave the preinstalled torch alone.

For a notebook's first cell.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

from mdlib.core.paths import ROOT

GIVEN = ("torch", "torchvision")  # Colab's own fit its GPU; pip would bring others


def in_colab() -> bool:
    """Whether this process is a kernel of Colab."""
    return "google.colab" in sys.modules


def missing_packages() -> list[str]:
    """List the dependencies of pyproject.toml that are not installed.

    Returns:
        Requirements as pip takes them; never one of GIVEN.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [
        line
        for line in project["dependencies"]
        if _name(line) not in GIVEN and not _version(_name(line))
    ]


def install_missing() -> None:
    """In Colab, pip-install `missing_packages`, with torch held at the version that is there.

    Elsewhere, nothing.

    Raises:
        subprocess.CalledProcessError: where pip fails.
    """
    wanted = missing_packages() if in_colab() else []
    if not wanted:
        return
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "held.txt"
        held.write_text(
            "".join(f"{name}=={version}\n" for name in GIVEN if (version := _version(name)))
        )
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "-c", str(held), *wanted], check=True
        )


def _name(requirement: str) -> str:
    """The package in a requirement such as "numpy>=2.0"."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def _version(name: str) -> str | None:
    """The installed version of a package, if there is one."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
