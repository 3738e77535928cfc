"""Files exchanged in one step: old or new, whenever the exchange ends."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import InputError
from finetune.files.exchange import exchange, finish_exchange, settled, staged

NAMES = ("both", "old", "new", "folder")


class Killed(BaseException):
    """What ends a process in the middle."""


def filled(folder: Path) -> Path:
    folder.mkdir()
    (folder / "both").write_text("1")
    (folder / "old").write_text("1")
    (folder / "other").write_text("stays")
    (folder / "folder").mkdir()
    (folder / "folder" / "file").write_text("1")
    (folder / "kept").mkdir()
    (folder / "kept" / "gone").write_text("1")
    return folder


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def exchanged(folder: Path, kept_in: str | None) -> None:
    with staged(folder) as stage:
        (stage / "both").write_text("2")
        (stage / "new").write_text("2")
        exchange(folder, NAMES, kept_in=kept_in, gone=["kept"], stage=stage)


OTHER = {"other": "stays"}
OLD = {"both": "1", "old": "1", "folder/file": "1", "kept/gone": "1"} | OTHER
NEW = {"both": "2", "new": "2"} | OTHER
EARLIER = {"earlier/1/both": "1", "earlier/1/old": "1", "earlier/1/folder/file": "1"}


@pytest.mark.parametrize("kept_in", [None, "earlier/1"])
def test_files_are_exchanged(kept_in: str | None, tmp_path: Path) -> None:
    folder = filled(tmp_path / "folder")
    exchanged(folder, kept_in)
    assert content(folder) == NEW | (EARLIER if kept_in else {})


@pytest.mark.parametrize("kept_in", [None, "earlier/1"])
def test_whenever_it_is_killed_all_files_are_old_or_all_are_new(
    kept_in: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    for moment in range(40):
        folder = filled(tmp_path / str(moment))
        with monkeypatch.context() as patch:
            left = iter(range(moment))

            def until_killed(call: Any, left: Any = left) -> Any:
                def step(*words: Any, **named: Any) -> Any:
                    if next(left, None) is None:
                        raise Killed
                    return call(*words, **named)

                return step

            for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
                patch.setattr(os, name, until_killed(getattr(os, name)))
            try:
                exchanged(folder, kept_in)
                killed = False
            except Killed:
                killed = True
        settled(folder)
        # What the killed process wrote beside the run is deleted by the next change.
        now = {name: text for name, text in content(folder).items() if not name.startswith(".")}
        assert now in (OLD, NEW | (EARLIER if kept_in else {})), moment
        assert now == OLD or not (folder / ".kept-gone").exists(), moment
        found.add(now == OLD)
        exchanged(folder, None)
        if not killed:
            break
    assert found == {True, False}
    assert not killed


def test_an_exchange_that_fails_before_its_end_changes_nothing(tmp_path: Path) -> None:
    folder = filled(tmp_path / "folder")
    with suppress(Killed), staged(folder) as stage:
        (stage / "both").write_text("2")
        raise Killed
    assert content(folder) == OLD


@pytest.mark.parametrize(
    "plan",
    [
        {"old": ["../outside"], "new": [], "kept_in": None, "gone": []},
        {"old": [], "new": [], "kept_in": None, "gone": ["../outside"]},
        {"old": ["both"], "new": [], "kept_in": "../..", "gone": []},
        {"old": [], "new": [""], "kept_in": None, "gone": []},
        {"old": "both", "new": [], "kept_in": None, "gone": []},
        [],
    ],
)
def test_a_plan_that_was_made_to_do_harm_is_refused(plan: Any, tmp_path: Path) -> None:
    folder = filled(tmp_path / "folder")
    (tmp_path / "outside").write_text("stays")
    (folder / ".exchange").mkdir()
    (folder / ".exchange" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(InputError, match=r"plan\.json may be damaged"):
        finish_exchange(folder)
    assert (tmp_path / "outside").read_text() == "stays"
    assert (folder / "both").read_text() == "1"
