"""Prints the lowest version of every dependency that pyproject.toml allows, as constraints for pip: `make lowest`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path


def lowest(requirement: str) -> str | None:
    """`name==version ; marker` of `name[extra]>=version ; marker`; None for a requirement without a bound."""
    found = re.fullmatch(r"\s*([\w.-]+)(?:\[[^\]]*\])?>=([\w.]+)\s*(;.*)?", requirement)
    return found and f"{found[1]}=={found[2]}{' ' + found[3] if found[3] else ''}"


def main() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    print("\n".join(sorted({line for group in groups for line in map(lowest, group) if line})))


if __name__ == "__main__":
    main()
