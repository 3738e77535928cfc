"""A run while it is changed: locked, read by others, killed; near-duplicates of two splits; unlabelled pictures."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeFolder
from PIL import Image

import finetune
from finetune import InputError
from finetune.api.changes.solved import solve_again
from finetune.data.folder import Listing, Sample
from finetune.data.images import Content
from finetune.features.forward import Outputs
from finetune.files import exchange
from finetune.files.locks import locked
from finetune.kept.features import read_features
from finetune.kept.union import with_pictures
from finetune.progress import Display

SMALL: dict[str, Any] = {"strategy": "head", "backbone": "fewtune_conv4", "device": "cpu", "workers": 0}


class Killed(BaseException):
    """What ends a process in the middle."""


@pytest.fixture
def run(make_folder: MakeFolder, tmp_path: Path) -> Path:
    finetune.fit(make_folder(classes={"a": 12, "b": 12}, noise=90), tmp_path / "run", **SMALL)
    return tmp_path / "run"


def test_a_run_that_another_process_changes_is_not_changed(run: Path) -> None:
    with locked(run), pytest.raises(InputError, match="another process is at the run in"):
        finetune.forget(run, pictures=["a/000.png"], device="cpu")


def test_a_run_that_has_not_finished_is_not_changed(run: Path) -> None:
    (run / "state").mkdir()
    with pytest.raises(InputError, match="has not finished"):
        finetune.forget(run, pictures=["a/000.png"], device="cpu")


@pytest.mark.slow
def test_whoever_reads_a_run_completes_a_change_that_was_killed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(shutil.copytree(run, tmp_path / "whole"))
    expected = finetune.forget(whole, pictures=["a/000.png"], device="cpu")

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(exchange, "_carry_through", killed)
        with pytest.raises(Killed):
            finetune.forget(run, pictures=["a/000.png"], device="cpu")
    assert (run / ".exchange").is_dir()
    asked = [tmp_path / "pictures" / "a" / "001.png"]
    found = finetune.load(run, device="cpu").log_probabilities(asked)[0]
    assert torch.equal(found, expected.log_probabilities(asked)[0])
    assert not (run / ".exchange").exists()
    assert [change.removed for change in finetune.history(run)] == [1]


def print_of(bits: range) -> str:
    """A fingerprint with some bits of its first hash set."""
    phash = np.packbits(np.isin(np.arange(256), list(bits))).tobytes()
    return (bytes([50, 9, 9, 9]) + phash + bytes(64)).hex()


@pytest.mark.slow
def test_a_new_near_duplicate_of_two_splits_is_left_out(run: Path) -> None:
    old = finetune.load(run, device="cpu")
    kept = read_features(run, old.classes)
    contents = list(kept.contents)
    one, other = kept.splits.index("train"), kept.splits.index("test")
    for place, bits in ((one, range(0)), (other, range(40))):
        contents[place] = replace(contents[place], fingerprint=print_of(bits))
    kept = replace(kept, contents=tuple(contents))
    label = kept.listing.samples[one].label
    new = Listing(Path("/new"), (Sample("near.png", label, None, 9), Sample("far.png", label, None, 9)), ())
    found = {0: Content("e" * 64, None, print_of(range(20))), 1: Content("f" * 64, None, print_of(range(120, 250)))}
    joined, positions = with_pictures(kept, new, Outputs(kept.pooled[:2, None], torch.tensor([0, 1]), found))
    solved = solve_again(old, joined, positions, Display())
    assert [entry.path for entry in solved.outcome.metrics.left_out] == ["/new/near.png"]
    assert "near-duplicate of" in solved.outcome.metrics.left_out[0].reason
    now = solved.kept.splits_by_content
    assert kept.splits_by_content.items() <= now.items()
    assert set(now) - set(kept.splits_by_content) == {"f" * 64}
    assert [solved.rows.listing.samples[position].path for position in solved.new] == ["/new/far.png"]


@pytest.mark.slow
def test_unlabelled_pictures_are_learned_from_again(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={"a": 8, "b": 8}, noise=110)
    more = make_folder("more", classes={"a": 12, "b": 12}, noise=110, seed=1)
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    for path in sorted(more.rglob("*.png")):
        path.rename(unlabelled / f"{path.parent.name}-{path.name}")
    options = SMALL | {"unlabelled": str(unlabelled)}
    finetune.fit(folder, tmp_path / "run", **options)
    for label in ("a", "b"):
        random = np.random.default_rng(ord(label))
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / label / "new.png")
    found = finetune.extend(tmp_path / "run", folder, device="cpu")
    expected = finetune.fit(folder, tmp_path / "again", **options)
    asked = sorted(unlabelled.iterdir())
    ours, theirs = (each.log_probabilities(asked)[0].exp() for each in (found, expected))
    assert float((ours - theirs).abs().max()) < 1e-6
    before, after = (each.metrics["unlabelled"] for each in (found, expected))
    assert before["pictures"] == after["pictures"] > 0
    assert before["strength"] == after["strength"]
