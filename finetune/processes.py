"""The process that a job runs in: its memory, and other processes beside it."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path


def keep_freed_memory() -> None:
    """Let glibc reuse large blocks of memory instead of returning each to the system.

    A forward pass on a CPU spends much of its time on fresh, zeroed pages otherwise. glibc cannot report its settings,
    so they cannot be restored: the commands call this, and a library call never does.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        mmap_max, trim_threshold, arena_max = -4, -1, -8  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX of malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 1 << 30)
        # A thread's own arena would be trimmed all the same.
        libc.mallopt(arena_max, 1)


def share_cores() -> None:
    """Let threads sleep while they wait for each other, so that other programs can use the core.

    OpenMP's threads wait actively by default. Where other programs run on the same cores, each wait then lasts until
    the system takes the core away: training is many times slower. This is read when torch is imported, so a command
    calls it before, and a library call never does. OMP_WAIT_POLICY and GOMP_SPINCOUNT come first.
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def process_age() -> float:
    """Seconds since this process started; where the system does not tell, the CPU time that it has used."""
    try:
        # The 22nd field, in clock ticks since the system started. The name in field 2 may hold spaces.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.process_time()
