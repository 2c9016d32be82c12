"""Where the repository's own folders are. Nothing heavy is imported here: data needs it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS, PRESETS = ROOT / "notebooks", ROOT / "presets"
