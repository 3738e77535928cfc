"""Collections embedded by the workers of a Ray cluster."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from drawings import character
from killing import HEARS_CTRL_C, started
from PIL import Image

from fewshot.collection.merging import merge_parts
from fewshot.collection.parts import part_files, read_part
from fewshot.collection.ray_cluster import check_reachable, ray_cluster
from fewshot.collection.ray_engine import RayEngine
from fewshot.collection.shards import ShardUpdate, embed_shard
from fewshot.embedding.embedder import Embedder
from fewshot.search.picture_index import embed_folder
from finetune.data.collection.shard import Shard
from finetune.errors import InputError

# Ray warns of its own settings.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'fewtune[ray]'"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray, initialised in this process: a job finds it, as in a program that uses Ray."""
    with ray_cluster(None, 1):
        yield


@pytest.fixture(scope="module")
def embedder(model: Path) -> Embedder:
    return Embedder.load(model, device="cpu")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 drawings in two folders, and a file that is none."""
    folder = tmp_path_factory.mktemp("drawings")
    for number in range(40):
        path = folder / f"{number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(255 - character(number // 3, number % 3)).save(path)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@dataclass(frozen=True)
class Job:
    """A finished job: its parts, what it did, what it told of unreadable pictures, and the workers that were killed.

    before, after: The state of this process.
    """

    before: object
    after: object
    parts: Path
    update: ShardUpdate
    told: dict[str, str]
    killed: list[int]


@pytest.fixture(scope="module")
def job(cluster: None, drawings: Path, embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """All drawings, while a worker that embeds is killed."""
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        while not killed and not ended.is_set():
            for process in workers_that_embed()[:1]:
                os.kill(process, signal.SIGKILL)
                killed.append(process)
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    parts = tmp_path_factory.mktemp("job") / "parts"
    before = state()
    try:
        update, told = embed(drawings, parts, embedder)
        return Job(before, state(), parts, update, told, killed)
    finally:
        ended.set()
        killer.join()


def embed(source: Path, out: Path, embedder: Embedder) -> tuple[ShardUpdate, dict[str, str]]:
    told: dict[str, str] = {}
    engine = RayEngine(device="cpu")
    update = embed_shard(source, out, embedder, Shard(), batch_size=2, workers=1, ray=engine, tell=told.__setitem__)
    return update, told


@needs_ray
def test_a_killed_worker_costs_no_picture_and_none_is_there_twice(job: Job, drawings: Path, embedder: Embedder) -> None:
    assert job.killed
    assert (job.update.embedded, job.update.pictures, job.update.unreadable) == (40, 40, 1)
    assert job.told == {"broken.png": "not a picture"}
    assert keys_in(job.update, embedder.width) == keys_of(drawings)


@needs_ray
def test_the_index_of_the_parts_is_that_of_one_process(
    job: Job, drawings: Path, tmp_path: Path, embedder: Embedder
) -> None:
    found, _ = merge_parts(tmp_path / "merged", [job.parts], device="cpu")
    expected, _ = embed_folder(drawings, tmp_path / "index", embedder)
    assert sorted(found.keys) == sorted(expected.keys)
    assert found.about == expected.about
    assert [found.metadata(key) for key in expected.keys] == [expected.metadata(key) for key in expected.keys]
    np.testing.assert_allclose(found.vectors(expected.keys), expected.vectors(expected.keys), atol=1e-6)


@needs_ray
def test_a_job_that_runs_again_embeds_what_is_new_or_changed(
    job: Job, drawings: Path, tmp_path: Path, embedder: Embedder
) -> None:
    shutil.copytree(job.parts, tmp_path / "parts")
    kept = (drawings / "0" / "00.png").read_bytes(), (drawings / "0" / "02.png").read_bytes()
    try:
        (drawings / "0" / "00.png").unlink()
        shutil.copy(drawings / "0" / "04.png", drawings / "0" / "02.png")
        shutil.copy(drawings / "0" / "04.png", drawings / "0" / "new.png")
        again, told = embed(drawings, tmp_path / "parts", embedder)
        assert (again.embedded, again.unchanged, again.removed, again.unreadable) == (2, 38, 2, 1)
        assert told == {"broken.png": "not a picture"}
        assert keys_in(again, embedder.width) == keys_of(drawings)
    finally:
        (drawings / "0" / "new.png").unlink(missing_ok=True)
        for name, content in zip(("00.png", "02.png"), kept, strict=True):
            (drawings / "0" / name).write_bytes(content)


@needs_ray
def test_ray_that_runs_already_is_used_and_left_as_it_was(job: Job) -> None:
    import ray

    assert ray.is_initialized()
    assert job.before == job.after


@needs_ray
def test_a_cluster_without_gpus_is_named(cluster: None, drawings: Path, tmp_path: Path, embedder: Embedder) -> None:
    with pytest.raises(InputError, match=r"^--device cuda: the Ray cluster has no GPU"):
        embed_shard(drawings, tmp_path / "parts", embedder, Shard(), ray=RayEngine(device="cuda"))


@needs_ray
def test_ctrl_c_ends_the_command_with_one_line_and_all_processes(drawings: Path, tmp_path: Path, model: Path) -> None:
    words = ["embed", drawings, "--out", tmp_path / "index", "--engine", "ray", "--workers", 1, "--batch-size", 2]
    script = f"{HEARS_CTRL_C}; from fewshot.__main__ import main; main()"
    with started(script, *words, "--model", model, "--device", "cpu", "--json") as process:
        deadline = time.monotonic() + 300
        while not (found := descendants(process.pid)) or not any("raylet" in name for name in found.values()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (130, "", "fewshot: stopped\n")
    deadline = time.monotonic() + 60
    while alive := [pid for pid in found if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, [found[pid] for pid in alive]
        time.sleep(0.05)


def test_an_address_where_nothing_listens_is_one_line_at_once() -> None:
    with pytest.raises(InputError, match=r"^--address 127\.0\.0\.1:1: no Ray cluster answers there \(.*refused\)$"):
        check_reachable("127.0.0.1:1")


@needs_ray
def test_a_token_at_hand_is_shown_to_a_running_cluster(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    asks = (
        "import os\nfrom fewshot.collection.ray_cluster import imported_ray\n"
        "imported_ray('auto'); assert 'RAY_AUTH_MODE' not in os.environ\n"
        "from ray._private.authentication.authentication_token_setup import *\n"
        "print(get_authentication_mode() == AuthenticationMode.TOKEN)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    answer = subprocess.run(
        [sys.executable, "-c", asks],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "True\n"


def test_an_address_of_another_kind_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^--address ray://127\.0\.0\.1:1: give host:port, such as"):
        RayEngine("ray://127.0.0.1:1").check()


def test_without_ray_one_line_names_the_extra(
    drawings: Path, tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        InputError, match=r"^--engine ray needs a package that is missing: pip install 'fewtune\[ray\]'"
    ):
        embed(drawings, tmp_path / "parts", embedder)


def state() -> object:
    """What a library call must leave as it was."""
    import ray.data

    levels = [logging.getLogger(name).level for name in ("ray", "ray.data")]
    context = vars(ray.data.DataContext.get_current()).copy()
    return context, levels, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), dict(os.environ)


def keys_in(update: ShardUpdate, width: int) -> list[str]:
    return sorted(key for path in part_files(Path(update.folder)) for key in read_part(path, width).keys)


def keys_of(source: Path) -> list[str]:
    found = [path.relative_to(source).as_posix() for path in source.rglob("*.png")]
    return sorted(key for key in found if key != "broken.png")


def workers_that_embed() -> list[int]:
    return [pid for pid, name in descendants(os.getpid()).items() if name.startswith("ray::MapWorker")]


def descendants(parent: int) -> dict[int, str]:
    """Process -> its command line, of all processes below one."""
    parents, found = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            found[int(path.name)] = path.joinpath("cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended
            continue
    below = {parent}
    while more := {pid for pid, above in parents.items() if above in below} - below:
        below |= more
    return {pid: found[pid] for pid in below - {parent} if pid in found}
