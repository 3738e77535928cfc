"""What a result file says of the machine and the versions that made it."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "fewtune",
    "torch",
    "torchvision",
    "timm",
    "scikit-learn",
    "lightning-fabric",
    "pillow",
    "pytorch-metric-learning",
)


def provenance() -> dict[str, Any]:
    """Machine, versions, revision, date and command, as JSON values."""
    return {
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform(terse=True)},
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "revision": revision(),
        "date": datetime.date.today().isoformat(),
    }


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def revision() -> str:
    """The commit of the working tree, with "+" when it was changed since, in anything but results."""
    here = Path(__file__).parent
    if shutil.which("git") is None:
        return ""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    changed = subprocess.run(
        ["git", "status", "--porcelain", "-uno", "--", ":/", ":(exclude)results"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
