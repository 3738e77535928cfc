"""`push_to_hub`: a finished run pushed to the Hugging Face hub, with a model card."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory

from finetune.classifier.published.card import LIBRARY, model_card
from finetune.classifier.published.contents import CARD_FILE, OWN, left_behind, published_files
from finetune.classifier.published.fetched import check_local
from finetune.classifier.run_metrics import METRICS_FILE, read_run_metrics
from finetune.classifier.stored import read_finished
from finetune.errors import InputError
from finetune.files.exchange import finish_exchange
from finetune.files.locks import locked
from finetune.files.writing import write_text
from finetune.hub.address import parse_address
from finetune.progress import Display


def push_to_hub(
    run: str | Path,
    repository: str,
    *,
    private: bool = False,
    licence: str | None = None,
    include: Collection[str] = (),
    display: Display | None = None,
) -> str:
    """Push a finished run to the Hugging Face hub, from which `load("hf://user/name")` fetches it.

    Pushed are the weights, the options, the figures, the history, the answers to the validation pictures without their
    names, and a model card, README.md. Pictures, their names, hashes and features, and folders of this machine stay
    here. The names of the classes are pushed. The token is that of `hf auth login` or HF_TOKEN.

    Args:
        run: A run folder; it is not changed.
        repository: Such as "user/name". It is made where it is missing; an earlier run in it is replaced, and its
            earlier commits stay.
        private: Whether only its owners may see a repository that is made.
        licence: The hub's name of the licence, such as "mit", for the card.
        include: What is pushed besides: "hashes" of the pictures, by which `evaluate` leaves out those that the run has
            learned from; "features" of the pictures with their names, which `extend` and `forget` need; "report", the
            page with small pictures.
        display: Shows what is pushed and what is not.

    Returns:
        The address of the commit, "hf://user/name@commit".

    Raises:
        InputError: If the run has not finished or is damaged, the hub cannot be reached or refuses it, or the
            repository holds another kind of model. Nothing is then pushed.

    Example:
        >>> from finetune import InputError, push_to_hub
        >>> try:
        ...     push_to_hub("runs/photos", "no repository")
        ... except InputError as error:
        ...     print(error)
        'no repository' is no repository of the hub; write hf://USER/NAME...
    """
    from finetune.hub.pushing import push  # its import takes time

    check_local(run)
    folder, display, address = Path(run), display or Display(), parse_address(repository)
    if address.revision is not None:
        raise InputError(f"{address} names a revision, and a push makes a new one: leave out @{address.revision}")
    config = read_finished(folder)  # before the lock, which would make a folder that is missing
    with (
        locked(folder, busy=f"another process is at the run in {folder}; wait for its end"),
        TemporaryDirectory() as made,
    ):
        finish_exchange(folder)
        stage = Path(made)
        config = read_finished(folder)
        metrics = read_run_metrics(folder) if (folder / METRICS_FILE).exists() else None
        files = published_files(folder, config, metrics, include, stage)
        write_text(stage / CARD_FILE, model_card(address, config, metrics, set(files), licence))
        files[CARD_FILE] = stage / CARD_FILE
        message = f"Push a classifier of {len(config.classes or ()):,} classes"
        pushed = push(address, files, own=OWN, library=LIBRARY, private=private, message=message, display=display)
    if stays := left_behind(folder, include):
        display.say(f"not pushed: {', '.join(stays)}")
    if licence is None:
        display.say("the card names no licence, so others may not know what is allowed; --licence ID states one")
    return str(pushed)
