"""Shards of a collection: each picture once, after changes and kills too; merged, they are the index of one process."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from called import Answer
from drawings import character
from killing import forked, interrupted
from made_pictures import encoded
from PIL import Image
from tar_archives import tar_of

from fewshot import Embedder, Index, embed_folder, embed_shard, merge_parts
from fewshot.collection import shards as shards_file
from fewshot.collection.parts import read_header, read_parts
from finetune.errors import InputError
from finetune.files.locks import locked
from finetune.progress import Advance, Display

N = 3  # shards
Call = Callable[..., Answer]


@pytest.fixture(scope="module")
def embedder(model: Path) -> Embedder:
    return Embedder.load(str(model), device="cpu", tolerance=1)


def drawn(folder: Path, number: int) -> Path:
    for at in range(number):
        path = folder / f"{at % 4}" / f"{at:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - character(at, 0)).save(path)
    return folder


def embed_all(source: Path, out: Path, embedder: Embedder) -> list[shards_file.ShardUpdate]:
    return [embed_shard(source, out, embedder, f"{number}/{N}") for number in range(1, N + 1)]


def rows_in(out: Path, embedder: Embedder) -> list[tuple[str, str]]:
    """Key and SHA-256 of every row of the parts of all shards."""
    return sorted(
        (key, digest.tobytes().hex())
        for _, folder in shards_file.shard_folders(out)
        for _, part in read_parts(folder, embedder.width)
        for key, digest in zip(part.keys, part.digests, strict=True)
    )


def contents_of(folder: Path) -> list[tuple[str, str]]:
    paths = sorted(path for path in folder.rglob("*.png") if path.name != "bad.png")
    return [(path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


def assert_equal(index: Index, other: Index) -> None:
    assert index.keys == other.keys
    assert index.about == other.about
    assert [index.metadata(key) for key in index.keys] == [other.metadata(key) for key in other.keys]
    np.testing.assert_allclose(index.vectors(index.keys), other.vectors(other.keys), atol=1e-6)


def test_merged_shards_are_the_index_of_one_process(embedder: Embedder, tmp_path: Path) -> None:
    folder = drawn(tmp_path / "photos", 20)
    (folder / "bad.png").write_text("no picture")
    told: list[tuple[str, str]] = []
    for number in range(1, N + 1):
        embed_shard(folder, tmp_path / "parts", embedder, f"{number}/{N}", tell=lambda *line: told.append(line))
    assert told == [("bad.png", "not a picture")]
    (ledger,) = (tmp_path / "parts").glob("*/unreadable.csv")
    assert ledger.read_text() == "path,reason\nbad.png,not a picture\n"
    index, merged = merge_parts(tmp_path / "merged", [tmp_path / "parts"])
    assert (merged.pictures, merged.unreadable, merged.missing, merged.unfinished) == (20, 1, (), ())
    assert_equal(index, embed_folder(folder, tmp_path / "index", embedder)[0])
    later, update = embed_folder(folder, tmp_path / "merged", embedder)
    assert (update.unchanged, update.embedded, update.moved, update.removed) == (20, 0, 0, 0)
    assert_equal(later, index)


def test_a_shard_that_runs_again_follows_the_collection(embedder: Embedder, tmp_path: Path) -> None:
    folder, out = drawn(tmp_path / "photos", 20), tmp_path / "parts"
    (folder / "bad.png").write_text("no picture")
    embed_all(folder, out, embedder)
    again = embed_all(folder, out, embedder)
    assert [(update.embedded, update.removed) for update in again] == [(0, 0)] * N
    assert sum(update.unchanged for update in again) == 20
    assert sum(update.unreadable for update in again) == 1
    (folder / "0" / "00.png").unlink()
    times = os.stat(folder / "1" / "01.png")
    (folder / "1" / "01.png").write_bytes((folder / "2" / "02.png").read_bytes())
    os.utime(folder / "1" / "01.png", ns=(times.st_atime_ns, times.st_mtime_ns))  # content decides, not the time
    Image.fromarray(255 - character(30, 0)).save(folder / "bad.png")
    Image.fromarray(255 - character(31, 0)).save(folder / "new.png")
    changed = embed_all(folder, out, embedder)
    assert sum(update.embedded for update in changed) == 3
    assert sum(update.removed for update in changed) == 2
    assert sum(update.unreadable for update in changed) == 0
    assert not list(out.glob("*/unreadable.csv"))
    index, _ = merge_parts(tmp_path / "merged", [out])
    assert_equal(index, embed_folder(folder, tmp_path / "index", embedder)[0])


class Interrupting(Display):
    """A display on which somebody presses Ctrl-C after a number of pictures."""

    @contextmanager
    def bar(self, label: str, total: int | None) -> Iterator[Advance]:
        done = 0

        def advance(count: int, note: str) -> None:
            nonlocal done
            done += count
            if done >= 8:
                raise KeyboardInterrupt

        yield advance


def test_ctrl_c_keeps_what_is_embedded(embedder: Embedder, tmp_path: Path) -> None:
    folder, out = drawn(tmp_path / "photos", 24), tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        embed_shard(folder, out, embedder, "1/1", batch_size=4, display=Interrupting())
    assert len(rows_in(out, embedder)) >= 8
    assert not read_header(out / "shard-1-of-1").complete
    update = embed_shard(folder, out, embedder, "1/1")
    assert update.unchanged >= 8
    assert update.pictures == 24
    assert rows_in(out, embedder) == contents_of(folder)


def test_a_long_block_is_written_in_several_parts(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_file, "SAVE_EVERY", -1.0)
    folder, out = drawn(tmp_path / "photos", 12), tmp_path / "parts"
    embed_shard(folder, out, embedder, "1/1", batch_size=4)
    assert len(list((out / "shard-1-of-1").glob("part-*"))) == 3
    assert rows_in(out, embedder) == contents_of(folder)


def test_memory_holds_no_more_than_a_block(embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_file, "CPU_BLOCK", (16, 1 << 20))
    folder, out = drawn(tmp_path / "photos", 50), tmp_path / "parts"
    embed_shard(folder, out, embedder, "1/1")
    parts = [part for _, part in read_parts(out / "shard-1-of-1", embedder.width)]
    assert sum(map(len, parts)) == 50
    assert max(map(len, parts)) <= 32


def test_tars_and_a_table_give_the_same_vectors(embedder: Embedder, tmp_path: Path) -> None:
    pictures = {f"{at:02}.png": encoded(Image.fromarray(255 - character(at, 0)), "PNG") for at in range(12)}
    (tmp_path / "tars").mkdir()
    for number in range(2):
        own = dict(list(pictures.items())[number::2])
        tar_of(tmp_path / "tars" / f"{number}.tar", own | {"x.json": b"{}", "../evil.png": b"x"})
    (tmp_path / "photos").mkdir()
    for name, content in pictures.items():
        (tmp_path / "photos" / name).write_bytes(content)
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"photos/{name}\n" for name in pictures))
    before = sorted(path for path in tmp_path.rglob("*"))
    expected = embedder.embed([tmp_path / "photos" / name for name in pictures])
    for source, key in (("tars", "{tar}.tar/{name}"), ("list.csv", "photos/{name}")):
        one, update = embed_folder(tmp_path / source, tmp_path / f"{source}.one", embedder)
        for number in (1, 2, 3):
            embed_shard(tmp_path / source, tmp_path / f"{source}.parts", embedder, f"{number}/3")
        index, merged = merge_parts(tmp_path / f"{source}.index", [tmp_path / f"{source}.parts"])
        assert set(index.keys) == set(one.keys)
        assert index.about == one.about
        assert len(update.unreadable) == merged.unreadable == (2 if source == "tars" else 0)
        for found in (index, one):
            keys = [key.format(tar=at % 2, name=name) for at, name in enumerate(pictures)]
            np.testing.assert_allclose(found.vectors(keys), expected, atol=1e-6)
        _, update = embed_folder(tmp_path / source, tmp_path / f"{source}.index", embedder)
        assert (update.unchanged, update.embedded) == (12, 0)
    outputs = {path for name in ("tars", "list.csv") for end in ("one", "parts", "index") for path in [f"{name}.{end}"]}
    assert sorted(p for p in tmp_path.rglob("*") if p.relative_to(tmp_path).parts[0] not in outputs) == before


def test_a_shard_at_work_is_refused(embedder: Embedder, tmp_path: Path) -> None:
    folder, out = drawn(tmp_path / "photos", 4), tmp_path / "parts"
    embed_shard(folder, out, embedder, "1/2")
    with locked(out / "shard-1-of-2"), pytest.raises(InputError, match="another process is embedding shard 1/2"):
        embed_shard(folder, out, embedder, "1/2")


def test_a_refused_shard_leaves_nothing(embedder: Embedder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        embed_shard(tmp_path / "empty", tmp_path / "parts", embedder, "1/2")
    assert not (tmp_path / "parts").exists()


def test_another_number_of_shards_is_refused(embedder: Embedder, tmp_path: Path) -> None:
    folder, out = drawn(tmp_path / "photos", 4), tmp_path / "parts"
    embed_shard(folder, out, embedder, "1/2")
    with pytest.raises(InputError, match="parts holds shard-1-of-2, of another number of shards than 1/3"):
        embed_shard(folder, out, embedder, "1/3")
    embed_folder(folder, tmp_path / "index", embedder)
    with pytest.raises(InputError, match="is an index; give --shard another --out"):
        embed_shard(folder, tmp_path / "index", embedder, "1/3")


def test_the_commands(call: Call, model: Path, pictures: Path, tmp_path: Path) -> None:
    words = ("embed", pictures, "--model", model, "--out", tmp_path / "parts")
    first = call(*words, "--shard", "1/2")
    assert first.code == 0
    assert first.out.startswith("shard 1/2: ")
    refused = call("merge", tmp_path / "index", tmp_path / "parts")
    assert refused.code == 2
    assert "of 2 shards, missing: 2/2; run fewshot embed --shard for each of them" in refused.err
    assert not (tmp_path / "index").exists()
    assert call(*words, "--shard", "2/2").code == 0
    assert call("merge", tmp_path / "index", tmp_path / "parts").out.startswith("12 pictures in ")
    for wrong, message in (("0/2", "counted from 1"), ("x", "such as 3/8"), ("1/4", "another number of shards")):
        answer = call(*words, "--shard", wrong)
        assert answer.code == 2
        assert message in answer.err
    assert "--kind goes with fewshot merge" in call(*words, "--shard", "1/2", "--kind", "hnsw").err


MANY = 1000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for at in range(MANY):
        (folder / f"{at:04}.png").write_bytes(encoded(Image.new("L", (16, 16), at % 251), "PNG") + b"%d" % at)
    return folder


@pytest.mark.slow
def test_a_killed_shard_loses_and_repeats_nothing(
    embedder: Embedder, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_file, "CPU_BLOCK", (64, 1 << 20))
    out, folder = tmp_path / "parts", tmp_path / "parts" / "shard-1-of-1"
    with forked(lambda: embed_shard(many, out, embedder, "1/1", workers=1)) as process:
        while len(list(folder.glob("part-*"))) < 3:
            assert process.is_alive()
            time.sleep(0.01)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert 0 < len(rows_in(out, embedder)) < MANY
    update = embed_shard(many, out, embedder, "1/1")
    assert update.unchanged > 0
    assert update.pictures == MANY
    assert rows_in(out, embedder) == contents_of(many)


@pytest.mark.slow
def test_sigterm_is_one_line_and_keeps_what_is_embedded(
    embedder: Embedder, model: Path, many: Path, tmp_path: Path
) -> None:
    out = tmp_path / "parts"
    words = ("embed", many, "--out", out, "--shard", "1/1", "--model", model, "--workers", "1")
    checkpoint = out / "shard-1-of-1" / "parts.json"
    answer = interrupted("fewshot", words, checkpoint, signal.SIGTERM)
    assert answer.code == 143
    assert answer.err.strip().splitlines()[-1] == "fewshot: stopped"
    assert "Traceback" not in answer.err
    embed_shard(many, out, embedder, "1/1")
    assert rows_in(out, embedder) == contents_of(many)
