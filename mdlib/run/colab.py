"""Colab: install what the course misses there, and leave the preinstalled torch alone.

For a notebook's first cell.
"""

import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from mdlib.core.paths import ROOT

GIVEN = ("torch", "torchvision")  # Colab's own fit its GPU; pip would bring others


def in_colab() -> bool:
    """Whether this process is a kernel of Colab."""
    return "google.colab" in sys.modules


def missing_packages() -> list[str]:
    """List the dependencies of pyproject.toml that are not installed, or in another version.

    Returns:
        Requirements as pip takes them; never one of GIVEN.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [line for line in project["dependencies"] if not _is_there(Requirement(line))]


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
            "".join(f"{name}=={version}\n" for name in GIVEN if (version := _version(name))),
            encoding="utf-8",
        )
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "-c", str(held), *wanted], check=True
        )


def _is_there(needed: Requirement) -> bool:
    """Whether a package need not be installed; a version before a release is as good as it."""
    version = _version(needed.name)
    fits = version is not None and needed.specifier.contains(version, prereleases=True)
    return fits or needed.name in GIVEN


def _version(name: str) -> str | None:
    """The installed version of a package, if there is one."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
