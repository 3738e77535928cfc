"""Files pushed to a repository of the hub in one commit, which replaces what an earlier push left there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

from finetune.errors import InputError
from finetune.hub.address import Address
from finetune.hub.connection import errors_in_words, progress_of, why_offline
from finetune.hub.fetching import in_megabytes
from finetune.progress import Display


def push(
    address: Address,
    files: Mapping[str, Path],
    *,
    own: Collection[str],
    library: str,
    private: bool,
    message: str,
    display: Display,
) -> Address:
    """Push files to the main branch of a repository, which is made where it is missing.

    Args:
        address: The repository, without a revision.
        files: Names in the repository, and the files of this machine.
        own: Names of all files that a push may leave. Those that are there and not in `files` are deleted in the same
            commit.
        library: The library_name of their model card, by which a repository that holds something else is known.
        private: Whether nobody else may see a repository that is made.
        message: Of the commit.
        display: Shows what is pushed.

    Returns:
        The address of the commit.

    Raises:
        InputError: If the hub cannot be reached or refuses it, the repository holds another kind of model, or it is
            public and `private` is asked for. The repository is then as it was before, or new and empty.
    """
    reason = why_offline(f"{constants.ENDPOINT}/api/models/{address.repository}")
    if reason is not None:
        raise InputError(f"{address} cannot be pushed to, because the hub cannot be reached: {reason}")
    api = HfApi(endpoint=constants.ENDPOINT)
    with errors_in_words(address, "pushed to"):
        api.create_repo(address.repository, private=private or None, exist_ok=True)
        info = api.model_info(address.repository)
    there = {file.rfilename for file in info.siblings or ()}
    if private and info.private is False:
        raise InputError(f"{address} is public already: make it private in its settings, or push to another repository")
    if there & set(own) and info.library_name != library:
        raise InputError(f"{address} holds a model of another kind, which a push would replace; give a new name")
    size = sum(path.stat().st_size for path in files.values())
    kind = "private" if info.private else "public"
    display.say(f"pushing {len(files)} files, {in_megabytes(size)}, to the {kind} repository {address}")
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, path) for name, path in files.items()
    ]
    operations += [CommitOperationDelete(name) for name in sorted((there & set(own)) - set(files))]
    with errors_in_words(address, "pushed to"), progress_of(display):
        commit = api.create_commit(address.repository, operations, commit_message=message)
    return Address(address.repository, commit.oid)
