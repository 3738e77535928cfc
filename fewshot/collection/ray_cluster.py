"""The Ray cluster of a job: one that runs already, or a local one that ends with the job."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from finetune.errors import FewtuneError, InputError
from finetune.extras import check_extra
from finetune.terminal import reason_of

# Most bytes of the object store of a local cluster: batches on their way from one stage to the next.
OBJECT_STORE = 1 << 30
# Most characters of the folder of a local cluster: Ray adds 60, and the name of a socket has at most 107.
_LONGEST_FOLDER = 40
# Seconds within which a cluster takes a connection.
_ANSWERS_WITHIN = 10.0
# Ray reports its use over the network, asks a Prometheus server about its workers, and prints messages about its own
# processes, unless these are set.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_USAGE_DISABLED": "1", "RAY_BACKEND_LOG_LEVEL": "fatal"}


@contextmanager
def ray_cluster(address: str | None, workers: int | None) -> Iterator[Any]:
    """Connect to a Ray cluster, for the time of the block.

    Ray that is initialised in this process already is used, and left as it is.

    Args:
        address: Of a running cluster, "host:port", or "auto" for the one on this machine; None for that of the
            environment variable RAY_ADDRESS. Without one, a local cluster is started, and ended with the block.
        workers: Number of processes that a local cluster has room for; None for one per core.

    Yields:
        The module `ray`.

    Raises:
        InputError: If Ray is not installed, or no cluster answers at the address.
    """
    with ExitStack() as stack:
        ray = imported_ray(address)
        stack.enter_context(_environment(_QUIET | _token_mode(address)))
        address = _given(address)
        stack.enter_context(_log_level("ray.data", logging.CRITICAL))  # errors are raised
        if not ray.is_initialized():
            stack.enter_context(_log_level("ray", logging.ERROR))
            stack.enter_context(_connected(ray, address, workers))
        yield ray


def imported_ray(address: str | None) -> Any:
    """The module `ray`, with `ray.data`. InputError where it is missing, or nothing listens at the address."""
    address = _given(address)
    if address is not None and "://" in address:
        raise InputError(
            f"--address {address}: give host:port, such as 10.0.0.1:6379, or auto, and start the command on a machine "
            "of the cluster"
        )
    check_extra("ray", "--engine ray")
    with _environment(_token_mode(address)):  # Ray reads it when it is imported
        import ray
        import ray.data
    if address is not None and not ray.is_initialized():
        check_reachable(address)
    return ray


def _given(address: str | None) -> str | None:
    """The address of a running cluster; None for a local one."""
    return address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def _connected(ray: Any, address: str | None, workers: int | None) -> Iterator[None]:
    with ExitStack() as stack:
        if address is None:
            from finetune.data.loader import cores

            options = {
                "address": "local",
                "num_cpus": workers or cores(),
                "object_store_memory": min(OBJECT_STORE, _memory() // 4),
                "include_dashboard": False,
                "_temp_dir": stack.enter_context(_short_folder()),
            }
        else:
            options = {"address": address}
        stack.callback(ray.shutdown)  # also after a start that failed or was stopped, and before the folder is removed
        with _kept_handlers(), _without_messages():
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **options)
            except (OSError, RuntimeError, ValueError) as error:
                if address is None:
                    raise FewtuneError(f"Ray cannot start here: {reason_of(error)}") from error
                raise InputError(
                    f"--address {address}: no Ray cluster of this version of Ray answers there, or it wants a token, "
                    "which Ray reads from RAY_AUTH_TOKEN or ~/.ray/auth_token"
                ) from error
        yield


def _token_mode(address: str | None) -> dict[str, str]:
    """With a token at hand, Ray shows it to a running cluster only if it is told to. Others ignore it."""
    if _given(address) is None:
        return {}
    at_hand = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    return {"RAY_AUTH_MODE": "token"} if at_hand or Path("~/.ray/auth_token").expanduser().is_file() else {}


def check_reachable(address: str) -> None:
    """InputError where nothing listens at host:port. Ray itself tries for more than ten minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return  # such as "auto", for which Ray looks on this machine alone
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_WITHIN).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--address {address}: no Ray cluster answers there ({reason_of(error)})") from error


def _memory() -> int:
    """Bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # Windows, and systems without these names
        return 4 * OBJECT_STORE


@contextmanager
def _short_folder() -> Iterator[str]:
    """A temporary folder for logs, sockets and what does not fit in memory."""
    where = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="fewshot-ray-", dir="/tmp" if len(where) > _LONGEST_FOLDER - 20 else where)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a process that is ending may still write a log


@contextmanager
def _log_level(name: str, level: int) -> Iterator[None]:
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Inside, the variables have these values, except those that are set already."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM; inside a command that is the one that stops it with one line."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _without_messages() -> Iterator[None]:
    """Ray's core prints on descriptor 2 that its log level was set. What fails is raised."""
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(null)
        os.close(kept)
