"""Interrupted, killed and competing updates of an index of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawings import character
from made_index import assert_same
from PIL import Image

from fewshot.embedding.embedder import Embedder
from fewshot.search.index import Index
from fewshot.search.key_rows import KeyRows
from fewshot.search.picture_index import embed_folder
from finetune.errors import InputError
from finetune.progress import Advance, Display

LEFT = ("vectors-0123456789abcdef.faiss", "keys-0123456789abcdef.sqlite", ".vectors-0123456789abcdef.faiss.77")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.load("omniglot", device="cpu")


def drawn(folder: Path, number: int) -> Path:
    folder.mkdir()
    for at in range(number):
        Image.fromarray(255 - character(at, 0)).save(folder / f"{at:02}.png")
    return folder


class Interrupting(Display):
    """A display on which somebody presses Ctrl-C after a number of pictures."""

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Advance]:
        done = 0

        def advance(count: int, note: str) -> None:
            nonlocal done
            done += count
            if title == "embedding" and done >= self.after:
                raise KeyboardInterrupt

        yield advance


def test_leftovers_of_a_killed_first_embed_count_as_empty(embedder: Embedder, tmp_path: Path) -> None:
    folder, out = drawn(tmp_path / "pictures", 3), tmp_path / "index"
    out.mkdir()
    for name in LEFT:
        (out / name).write_text("half")
    index, update = embed_folder(folder, out, embedder)
    assert (len(index), update.embedded) == (3, 3)
    assert len(list(out.iterdir())) == 3
    assert_same(Index.load(out), index)


def test_leftovers_beside_a_file_of_the_user_are_no_index(embedder: Embedder, tmp_path: Path) -> None:
    folder, out = drawn(tmp_path / "pictures", 1), tmp_path / "index"
    out.mkdir()
    for name in (*LEFT, "thesis.txt"):
        (out / name).write_text("years of work")
    with pytest.raises(InputError, match=r"index is no index: it holds no index\.json"):
        embed_folder(folder, out, embedder)
    assert len(list(out.iterdir())) == 4


def test_ctrl_c_within_a_block_keeps_what_is_embedded(embedder: Embedder, tmp_path: Path) -> None:
    folder, out = drawn(tmp_path / "pictures", 12), tmp_path / "index"
    (folder / "01.png").write_text("no picture")
    with pytest.raises(KeyboardInterrupt):
        embed_folder(folder, out, embedder, batch_size=4, display=Interrupting(8))
    there = Index.load(out)
    assert there.keys == tuple(f"{at:02}.png" for at in range(8) if at != 1)
    index, update = embed_folder(folder, out, embedder, batch_size=4)
    assert (update.unchanged, update.embedded, list(update.unreadable)) == (7, 4, ["01.png"])
    fresh = embedder.embed([folder / key for key in index.keys])
    np.testing.assert_allclose(index.vectors(index.keys), fresh, atol=1e-5)


def test_an_index_that_was_interrupted_while_it_changed_is_not_saved(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = drawn(tmp_path / "pictures", 4), tmp_path / "index"
    embed_folder(folder, out, embedder)
    before = Index.load(out)
    Image.fromarray(255 - character(9, 0)).save(folder / "new.png")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(KeyRows, "assign", interrupted)  # the vectors are in the engine, their keys are not
    with pytest.raises(KeyboardInterrupt):
        embed_folder(folder, out, embedder)
    monkeypatch.undo()
    assert_same(Index.load(out), before)


def test_of_two_folders_into_one_new_index_the_second_is_refused(embedder: Embedder, tmp_path: Path) -> None:
    one, other, out = drawn(tmp_path / "one", 2), drawn(tmp_path / "other", 3), tmp_path / "index"

    class Competing(Display):
        """A display on which another process ends its work first."""

        @contextmanager
        def bar(self, title: str, total: int) -> Iterator[Advance]:
            embed_folder(one, out, embedder)
            with super().bar(title, total) as advance:
                yield advance

    message = f"{out} is the index of {one}; choose another --out for {other}"
    with pytest.raises(InputError, match=message):
        embed_folder(other, out, embedder, display=Competing())
    assert Index.load(out).keys == ("00.png", "01.png")
    assert Index.load(out).about["folder"] == str(one)
    assert len(list(out.iterdir())) == 3
