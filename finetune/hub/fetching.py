"""Files of a repository in the local cache of the hub: those of a list alone, with a bound on the size of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache

from finetune.errors import InputError
from finetune.hub.address import Address
from finetune.hub.connection import errors_in_words, progress_of, why_offline
from finetune.progress import Display
from finetune.terminal import in_one_line

# Seconds to wait for the list of files, once the hub has answered.
_LIST_SECONDS = 20.0
# How often a branch may move while its files are fetched.
_MOST_MOVES = 3
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHOWN = 10  # digits of a commit


@dataclass(frozen=True)
class _Listed:
    """A commit of a repository, with the sizes of the wanted files in bytes."""

    commit: str
    sizes: dict[str, int]


def fetch(
    address: Address, bounds: Mapping[str, int], *, needed: Collection[str], last: str, display: Callable[[], Display]
) -> Path:
    """The folder in the cache of the hub that holds the wanted files of a repository; missing ones are downloaded.

    Nothing is asked of the hub for a commit that is in the cache. Where the hub cannot be reached, the cache serves the
    commit that it had last.

    Args:
        address: The repository.
        bounds: Names of the wanted files, and the most bytes that each may have. Others are never asked for.
        needed: Names of those without which there is nothing to use.
        last: Name of the one that is fetched last: with it, all are there.
        display: Gives the display, when there is something to say.

    Raises:
        InputError: If the repository, the revision or a needed file is not there, a file is larger than its bound, or
            the hub cannot be reached and the cache does not have the files.
    """
    if _COMMIT.fullmatch(address.revision or "") and (found := _cached(address, address.revision, needed, last)):
        return found
    reason = why_offline(f"{constants.ENDPOINT}/api/models/{address.repository}")
    if reason is not None:
        found = _cached(address, address.revision, needed, last)
        if found is None:
            raise InputError(
                f"{address} is not in the cache, and the hub cannot be reached: {reason}; fetch it once where there is "
                "a connection, then the cache serves it"
            )
        if not constants.HF_HUB_OFFLINE:
            at = f"at commit {found.name[:_SHOWN]}"
            display().say(f"{address} is used from the cache, {at}, because the hub cannot be reached: {reason}")
        return found
    for _ in range(_MOST_MOVES):
        listed = _list(address, bounds, needed)
        folder = _download(address, listed, last, display)
        if folder.name == listed.commit:
            return folder
    raise InputError(f"{address} changes while it is fetched; try again, or give a commit after @")


def _cached(address: Address, revision: str | None, needed: Collection[str], last: str) -> Path | None:
    """The folder of a revision in the cache; None where it lacks a file."""
    found = try_to_load_from_cache(address.repository, last, revision=revision)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return folder if all((folder / name).is_file() for name in needed) else None


def _list(address: Address, bounds: Mapping[str, int], needed: Collection[str]) -> _Listed:
    with errors_in_words(address, "fetched"):
        info = HfApi(endpoint=constants.ENDPOINT).model_info(
            address.repository, revision=address.revision, files_metadata=True, timeout=_LIST_SECONDS
        )
        given = {file.rfilename: file.size for file in info.siblings or () if file.rfilename in bounds}
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):  # it becomes the name of a folder
        raise InputError(f"{address} cannot be fetched: the hub names {in_one_line(commit)!r} as its commit")
    for name in needed:
        if name not in given:
            raise InputError(f"{address} holds no run of finetune: it has no {name}")
    sizes = {}
    for name, size in given.items():
        if not isinstance(size, int) or size < 0:
            raise InputError(f"{address} cannot be fetched: the hub states no size of {name}")
        if size > bounds[name]:
            raise InputError(f"{address} is not fetched: {name} has {size:,} bytes, and at most {bounds[name]:,} go")
        sizes[name] = size
    return _Listed(commit, sizes)


def _download(address: Address, listed: _Listed, last: str, display: Callable[[], Display]) -> Path:
    """The folder of the commit with all its wanted files; of another commit, where the branch has moved."""
    missing = [name for name in listed.sizes if not _is_cached(address, name, listed.commit)]
    shown = Display()
    if missing:
        shown = display()
        total = sum(listed.sizes[name] for name in missing)
        count = f"{len(missing)} file" + ("s" if len(missing) > 1 else "")
        shown.say(
            f"fetching {address} at commit {listed.commit[:_SHOWN]} from {constants.ENDPOINT}: {count}, "
            f"{in_megabytes(total)}"
        )
    folder = None
    for name in sorted(listed.sizes, key=lambda name: (name == last, name)):
        # The last one by the revision that was asked for, so that the cache knows its commit when there is no network.
        revision = address.revision if name == last else listed.commit
        with errors_in_words(address, "fetched"), progress_of(shown):
            path = Path(hf_hub_download(address.repository, name, revision=revision, endpoint=constants.ENDPOINT))
        size = path.stat().st_size
        if size != listed.sizes[name] and path.parent.name == listed.commit:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise InputError(
                f"{address} cannot be fetched: {name} has {size:,} bytes, and the hub lists {listed.sizes[name]:,}"
            )
        folder = path.parent
    assert folder is not None
    return folder


def _is_cached(address: Address, name: str, commit: str) -> bool:
    return isinstance(try_to_load_from_cache(address.repository, name, revision=commit), str)


def in_megabytes(size: int) -> str:
    """A number of bytes in words, such as "12.3 MB"."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"
