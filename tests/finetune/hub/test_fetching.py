from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hub_stand_in import Hub, sha
from told import NothingSaid, Told

from finetune.errors import InputError
from finetune.hub import connection
from finetune.hub.address import parse_address
from finetune.hub.fetching import fetch

BOUNDS = {"config.json": 1000, "model.safetensors": 10_000, "metrics.json": 1000}
FILES = {"config.json": b"{}", "model.safetensors": 2000 * b"w", "metrics.json": b"{1}"}
OTHERS = {"model.pkl": b"evil", "report.html": b"<script>", "state/checkpoint.safetensors": b"x", "README.md": b"card"}


def fetched(address: str, told: Told | None = None) -> Path:
    display = told or Told()
    return fetch(
        parse_address(address),
        BOUNDS,
        needed=("config.json", "model.safetensors"),
        last="config.json",
        display=lambda: display,
    )


def refused(address: str = "hf://me/colours") -> str:
    with pytest.raises(InputError) as caught:
        fetched(address)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("hf://me/")
    return text


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if not path.is_dir()}


def test_the_wanted_files_are_fetched_and_no_others(hub: Hub) -> None:
    hub.put("me/colours", FILES | OTHERS)
    told = Told()
    folder = fetched("hf://me/colours", told)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == FILES
    assert told.lines == [f"fetching hf://me/colours at commit {sha(0)[:10]} from {hub.address}: 3 files, 2.0 kB"]
    assert not any(name in path for name in OTHERS for _, path in hub.asked)


def test_files_in_the_cache_are_not_fetched_again(hub: Hub) -> None:
    hub.put("me/colours", FILES)
    folder = fetched("hf://me/colours")
    hub.asked.clear()
    assert fetched("hf://me/colours", NothingSaid()) == folder
    assert "GET" not in {method for method, path in hub.asked if not path.startswith("/api/")}
    hub.asked.clear()
    assert fetched(f"hf://me/colours@{sha(0)}", NothingSaid()) == folder
    assert hub.asked == []  # a commit never changes


def test_a_branch_is_followed_and_a_revision_is_kept_to(hub: Hub) -> None:
    repository = hub.put("me/colours", FILES)
    repository.branches["v1"] = 0
    assert fetched("hf://me/colours").name == sha(0)
    repository.commits.append(FILES | {"config.json": b"{2}"})
    repository.branches["main"] = 1
    assert (fetched("hf://me/colours") / "config.json").read_bytes() == b"{2}"
    assert (fetched("hf://me/colours@v1") / "config.json").read_bytes() == b"{}"
    assert "has no branch, tag or commit 'v2'" in refused("hf://me/colours@v2")


@pytest.mark.parametrize("way", ["offline", "closed"])
def test_without_the_hub_the_cache_serves_what_it_has(way: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("me/colours", FILES)
    folder = fetched("hf://me/colours")
    hub.asked.clear()
    if way == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    told, began = Told(), time.monotonic()
    assert fetched("hf://me/colours", told) == folder
    why = "because the hub cannot be reached: Connection refused"
    said = f"hf://me/colours is used from the cache, at commit {sha(0)[:10]}, {why}"
    assert told.lines == ([] if way == "offline" else [said])
    reason = "HF_HUB_OFFLINE is set" if way == "offline" else "Connection refused"
    assert f"is not in the cache, and the hub cannot be reached: {reason}; fetch it once" in refused("hf://me/others")
    assert time.monotonic() - began < 10
    assert hub.asked == []


def test_a_hub_that_does_not_answer_is_not_waited_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PATIENCE", 0.2)
    hub.status = 503
    assert "it answers 503" in refused()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://192.0.2.1")  # an address of no machine
    began = time.monotonic()
    refused()
    assert time.monotonic() - began < 10


def test_a_missing_private_or_gated_repository_is_one_line_that_says_what_to_do(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "has no repository" in refused("hf://me/nothing")
    assert "hf auth login" in refused("hf://me/nothing")
    hub.put("me/hidden", FILES, private=True)
    assert "or it is private" in refused("hf://me/hidden")
    hub.put("me/gated", FILES, gated=True)
    assert f"accept its conditions at {hub.address}/me/gated" in refused("hf://me/gated")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert names(fetched("hf://me/hidden")) == names(fetched("hf://me/gated")) == set(FILES)
    assert hub.tokens == {hub.token}


def test_a_cut_connection_leaves_nothing_that_is_taken_for_a_run(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.put("me/colours", FILES)
    hub.cut.add("model.safetensors")
    assert "cannot be fetched" in refused()
    assert "config.json" not in names(tmp_path / "cache")
    assert not [name for name in names(tmp_path / "cache") if "safetensors" in name or "incomplete" in name]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "is not in the cache" in refused()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub.cut.clear()
    folder = fetched("hf://me/colours")
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert capfd.readouterr() == ("", "")  # nothing of the client's own log and bars


def test_a_file_above_its_bound_is_refused_before_it_is_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.put("me/colours", FILES, sizes={"model.safetensors": 10_001})
    assert "model.safetensors has 10,001 bytes, and at most 10,000 go" in refused()
    assert not any("resolve" in path for _, path in hub.asked)
    assert not (tmp_path / "cache").exists()


def test_a_file_that_has_another_size_than_is_listed_is_refused_and_deleted(hub: Hub, tmp_path: Path) -> None:
    hub.put("me/colours", FILES, sizes={"model.safetensors": 100})
    assert "model.safetensors has 2,000 bytes, and the hub lists 100" in refused()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size == 2000]
    assert "config.json" not in names(tmp_path / "cache")


def test_names_that_leave_the_folder_are_never_asked_for(hub: Hub, tmp_path: Path) -> None:
    hostile = ("../../evil", "/etc/passwd", "..\\evil", "config.json/../../evil", "sub/config.json", "CONFIG.JSON ")
    hub.put("me/colours", FILES, extra_names=hostile)
    before = names(tmp_path)
    folder = fetched("hf://me/colours")
    assert names(folder) == set(FILES)
    assert not any(name in path for name in ("evil", "passwd", "sub/", "CONFIG") for _, path in hub.asked)
    assert not any("evil" in name or "passwd" in name for name in names(tmp_path) - before)


def test_a_repository_without_a_run_is_named(hub: Hub) -> None:
    hub.put("me/colours", {"pytorch_model.bin": b"pickle", "config.json": b"{}"})
    assert refused() == "hf://me/colours holds no run of finetune: it has no model.safetensors"
    assert not any("resolve" in path for _, path in hub.asked)


def test_a_commit_that_is_no_commit_names_no_folder(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.put("me/colours", FILES)
    monkeypatch.setattr("hub_stand_in.sha", lambda number: "../../outside")
    assert "names '../../outside' as its commit" in refused()
    assert not (tmp_path / "cache").exists()


def test_a_branch_that_moves_meanwhile_is_fetched_at_its_new_commit(hub: Hub) -> None:
    repository = hub.put("me/colours", FILES)
    answer, moves = repository.number, [1]

    def number(revision: str) -> int | None:
        """Move the branch when the last file is asked for."""
        if revision == "main" and moves and any("model.safetensors" in path for _, path in hub.asked):
            moves.pop()
            repository.commits.append(FILES | {"model.safetensors": b"new", "config.json": b"{2}"})
            repository.branches["main"] = 1
        return answer(revision)

    repository.number = number  # type: ignore[method-assign]
    folder = fetched("hf://me/colours")
    assert folder.name == sha(1)
    assert [(folder / name).read_bytes() for name in ("model.safetensors", "config.json")] == [b"new", b"{2}"]


def test_fetching_changes_nothing_in_the_process(hub: Hub) -> None:
    import logging

    hub.put("me/colours", FILES)
    log = logging.getLogger("huggingface_hub")
    before = (dict(os.environ), log.level, log.handlers[:])
    fetched("hf://me/colours")
    assert (dict(os.environ), log.level, log.handlers[:]) == before
