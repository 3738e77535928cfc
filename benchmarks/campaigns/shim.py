"""The shim of shim.c: compiled when it is needed, loaded before every other library, and armed in a fork."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

KINDS = {"open": 0, "write": 1, "sync": 2, "rename": 3, "read": 4}
SHORT, SLOW = -1, -2
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EACCES": errno.EACCES, "short": SHORT, "slow": SLOW}
SOURCE = Path(__file__).with_name("shim.c")


def built_shim() -> Path | None:
    """The compiled shim; None where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    target = Path(tempfile.gettempdir()) / f"fewtune-faults-shim-{os.getuid()}.so"
    if not target.exists() or target.stat().st_mtime < SOURCE.stat().st_mtime:
        draft = target.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", "-o", draft, SOURCE, "-ldl"], check=True)
        draft.replace(target)
    return target


def preload_shim() -> None:
    """Start this program again with the shim in it, unless it is."""
    shim = built_shim()
    if shim is not None and str(shim) not in os.environ.get("LD_PRELOAD", ""):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"LD_PRELOAD": str(shim)})


def is_loaded() -> bool:
    return hasattr(ctypes.CDLL(None), "fault_arm")


def arm(folder: Path, kind: str, at: int, error: str, lasts: bool) -> None:
    """The `at`-th call of the kind below the folder fails, and the later ones where `lasts`."""
    ctypes.CDLL(None).fault_arm(str(folder).encode(), KINDS[kind], ctypes.c_long(at), ERRORS[error], int(lasts))


def counted(kind: str) -> int:
    """Calls of the kind since `arm`."""
    library = ctypes.CDLL(None)
    library.fault_count.restype = ctypes.c_long
    return int(library.fault_count(KINDS[kind]))
