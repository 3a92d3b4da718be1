"""The requirements of an installation without torch and transformers; `python -m llmasos.light` prints them for pip.

    pip install --no-deps llmasos
    pip install $(python -m llmasos.light)

The native decoder runs the embedded model, GGUF files and every model that it can hold with numpy alone; torch and
transformers, nine tenths of the whole, are for the other models. This module needs only the package itself, whose list of
requirements it reads. pip has no extra that leaves something out.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, requires

HEAVY = ("torch", "transformers", "safetensors")  # for models that the native decoder cannot hold


def needed() -> list[str]:
    """The requirements of a light installation, as pip takes them. Raises PackageNotFoundError."""
    plain = [requirement for requirement in requires("llmasos") or () if "extra ==" not in requirement]
    return [requirement.replace(" ", "") for requirement in plain if _name(requirement) not in HEAVY]


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return found[0].lower().replace("_", "-") if found else ""


def main() -> int:
    try:
        print("\n".join(needed()))
    except PackageNotFoundError:
        print("llmasos is not installed here: pip install --no-deps llmasos", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
