"""The embedded default: a small corpus that travels with the package, so that the whole chain runs with no network.

`NOTICE` says where each file is from and under which licence; `build.py` makes them again from the raw material.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def bundled(name: str) -> Path:
    """Where one bundled file (or folder) lies, e.g. `bundled("sotu.parquet")`."""
    return FOLDER / name
