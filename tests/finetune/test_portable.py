"""What systems other than Linux lack: no module needs it when it is imported, and work goes on without it."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import signal
import sys
import warnings
from pathlib import Path

import pytest
from several import several

ROOT = Path(__file__).parents[2]
UNIX_ONLY = {"fcntl", "grp", "posix", "pwd", "resource", "syslog", "termios", "tty", "pty", "crypt", "spwd", "readline"}
MISSING = {
    os: "fork register_at_fork sched_getaffinity geteuid getuid getpgid killpg setsid sysconf statvfs mkfifo",
    signal: "SIGHUP SIGCHLD SIGKILL SIGUSR1 SIGALRM pthread_sigmask",
}
FILES = [path for package in ("finetune", "fewshot") for path in sorted((ROOT / package).rglob("*.py"))]


def every_module() -> None:
    for package in ("finetune", "fewshot"):
        importlib.import_module(package)
        for found in pkgutil.walk_packages(sys.modules[package].__path__, f"{package}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)


def without_unix(rank: int) -> None:
    """Imports every module twice: as here, so that other packages are in memory, and then where names are missing that
    Windows lacks. Their absence is then tried out."""
    warnings.simplefilter("ignore")
    every_module()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("finetune", "fewshot")]:
        del sys.modules[name]
    sys.modules.update(dict.fromkeys(UNIX_ONLY - {"posix"}))  # type: ignore[arg-type]
    for module, names in MISSING.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    sys.platform = "win32"
    every_module()

    from fewshot.collection.ray_cluster import _memory
    from fewshot.search.engines.pages import _madvise
    from finetune.data.loader import cores
    from finetune.entry.signals import StopSignals
    from finetune.processes import keep_freed_memory, process_age

    assert cores() == os.cpu_count()
    keep_freed_memory()
    assert process_age() > 0
    assert _memory() > 0
    assert _madvise() is None
    StopSignals.install("finetune").restore()


def test_no_module_imports_what_unix_alone_has_when_it_is_imported() -> None:
    found = []
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            found += [f"{path.name}: {name}" for name in names if name in UNIX_ONLY]
    assert not found


@pytest.mark.slow
def test_every_module_can_be_imported_where_names_of_unix_are_missing(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    assert several(1, tmp_path, without_unix) == [(0, "")]


def test_files_are_written_and_read_as_utf_8_everywhere() -> None:
    """Without a name of the encoding, Windows writes and reads in that of its language."""
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            opened = called == "open" or getattr(node.func, "id", "") == "open"
            text = called in ("read_text", "write_text") or (opened and _in_text_mode(node))
            if text and not any(keyword.arg == "encoding" for keyword in node.keywords):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


def _in_text_mode(call: ast.Call) -> bool:
    """Whether `open(path, mode)` or `path.open(mode)` is for text."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    if owner is not None and getattr(owner, "id", "") not in ("path", "file", "target", "place", "temporary"):
        return False  # os.open, Image.open, tarfile.open, ...
    modes = [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return not any("b" in mode for mode in modes)
