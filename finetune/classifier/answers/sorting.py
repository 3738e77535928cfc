"""Copies of pictures, or links to them, in one folder for each predicted class."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from itertools import count
from pathlib import Path

from finetune.classifier.answers.prediction import Prediction
from finetune.data.collection.collection import TAR
from finetune.errors import InputError
from finetune.files.folders import check_writable

UNSURE, UNKNOWN = "unsure", "unknown"
# Characters that some system does not allow in a file name, and those that could be read as an escape.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]|^\.|^ |[. ]$|%(?=[0-9A-F]{2})')


def check_target(target: Path, sources: Collection[Path]) -> None:
    """InputError where `target` is no folder to write to, or lies in one of the folders among `sources`, or where one
    of these is an archive, whose members are no files to copy."""
    for source in sources:
        if source.is_file() and source.suffix.lower() == TAR:
            raise InputError(f"{source} is an archive, whose pictures --sort-into cannot copy; extract it first")
    untouched = [source for source in sources if source.is_dir()]
    check_writable(target, "--sort-into", is_folder=True, untouched=untouched)


def sort_pictures(target: Path, answers: Sequence[Prediction], classes: Sequence[str], *, link: bool) -> int:
    """Copy each picture to `target`/<class>/, unknown ones to `target`/unknown/, and unsure ones to
    `target`/unsure/.

    An existing file is never replaced: another picture of the same name gets a number, "a-2.jpg". A picture that an
    earlier call has copied is not copied again. Unsafe characters of a class name become %XX in the folder's name.

    Args:
        target: Folder of the folders.
        answers: Predictions of pictures that were given by path.
        classes: Names of all classes.
        link: Make symbolic links in place of copies.

    Returns:
        The number of pictures in the folders.

    Raises:
        InputError: If a file cannot be written.

    Example:
        >>> from finetune import load, sort_pictures
        >>> classifier = load("runs/photos", device="cpu")
        >>> sort_pictures(Path("sorted"), classifier.predict_all(["new.png"]), classifier.classes, link=False)
        1
    """
    sorter = PictureSorter(target, classes, link=link)
    for answer in answers:
        sorter.put(answer)
    return len(sorter)


class PictureSorter:
    """What `sort_pictures` does, one picture at a time. Paths of the pictures that were put are kept in memory."""

    def __init__(self, target: Path, classes: Sequence[str], *, link: bool):
        self._folders = {label: target / safe_name(label) for label in classes}
        self._unsure = target / _free_name(UNSURE, classes)
        self._unknown = target / _free_name(UNKNOWN, classes)
        self._link = link
        self._taken: set[Path] = set()

    def __len__(self) -> int:
        return len(self._taken)

    def put(self, answer: Prediction) -> None:
        """Copy or link the picture. InputError where that is not possible."""
        source, folder = Path(answer.path or ""), self._folders[answer.label]
        if answer.unknown or answer.unsure:
            folder = self._unknown if answer.unknown else self._unsure
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._taken.add(_put(source, folder, self._taken, link=self._link))
        except OSError as error:
            why = error.strerror or str(error)
            raise InputError(f"{source} cannot be put into {folder} (--sort-into): {why}") from error


def safe_name(label: str) -> str:
    """`label` as the name of a folder, on any system; different labels have different names."""
    return _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", label)


def _free_name(name: str, classes: Sequence[str]) -> str:
    """`name` with as many leading underscores as make it differ from every class."""
    known = {safe_name(label).casefold() for label in classes}
    while name in known:
        name = f"_{name}"
    return name


def _put(source: Path, folder: Path, taken: Collection[Path], *, link: bool) -> Path:
    for place in _places(folder, source):
        if place in taken:
            continue
        if os.path.lexists(place):
            if _is_of(place, source, link=link):
                return place
            continue
        try:
            if link:
                place.symlink_to(os.path.abspath(source))
            else:
                _copy(source, place)
        except FileExistsError:  # another process was faster
            continue
        return place
    raise AssertionError("there is always another name")


def _places(folder: Path, source: Path) -> Iterator[Path]:
    yield folder / source.name
    for number in count(2):
        yield folder / f"{source.stem}-{number}{source.suffix}"


def _is_of(place: Path, source: Path, *, link: bool) -> bool:
    """Whether an earlier call made `place` of `source`."""
    if link:
        return place.is_symlink() and os.readlink(place) == os.path.abspath(source)
    return place.is_file() and not place.is_symlink() and filecmp.cmp(source, place, shallow=False)


def _copy(source: Path, place: Path) -> None:
    """Copy a file completely or not at all; FileExistsError where `place` exists."""
    place.open("xb").close()  # reserves the name
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        shutil.copy2(source, temporary)
        os.replace(temporary, place)
    except BaseException:
        place.unlink(missing_ok=True)
        raise
    finally:
        temporary.unlink(missing_ok=True)
