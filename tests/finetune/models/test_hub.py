from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from called import Answer, caller
from conftest import MakeFolder
from told import NothingSaid

from finetune.cli.main import main
from finetune.files.writing import write_tensors
from finetune.hub import connection
from finetune.models.hub import WeightsUnavailable, cached_models, weights_from_hub


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is at an address where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(connection, "PATIENCE", 0.2)
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "finetune", monkeypatch, capfd)


def keep(cache: Path, repository: str) -> None:
    folder = cache / repository / "snapshots" / "abc"
    write_tensors(folder / "model.safetensors", {"x": torch.zeros(1)})


def unavailable() -> tuple[str, float]:
    began = time.monotonic()
    with pytest.raises(WeightsUnavailable) as caught:
        weights_from_hub(
            "m", "timm/m", "model.safetensors", NothingSaid(), option="--backbone", instead=["--strategy scratch"]
        )
    assert "\n" not in str(caught.value)
    return str(caught.value), time.monotonic() - began


@pytest.mark.usefixtures("closed")
def test_an_unreachable_hub_is_reported_at_once_with_alternatives(cache: Path) -> None:
    for repository in ("models--timm--resnet18.a1_in1k", "models--someone--resnet18", "models--timm--no_such_model"):
        keep(cache, repository)
    (cache / "models--timm--resnet34.a1_in1k" / "snapshots" / "abc").mkdir(parents=True)
    assert cached_models() == ["resnet18.a1_in1k"]
    text, seconds = unavailable()
    assert seconds < 10, "the hub's own client takes over 20"
    assert "Connection refused" in text
    for way in ("--weights FILE", "--backbone with a model in the cache (resnet18.a1_in1k)", "--strategy scratch"):
        assert way in text


@pytest.mark.usefixtures("silent")
def test_a_hub_that_does_not_answer_is_not_waited_for() -> None:
    text, seconds = unavailable()
    assert seconds < 10
    assert "no answer" in text or "timed out" in text


@pytest.mark.parametrize(("code", "fetched"), [(503, False), (404, True), (302, True)])
def test_a_server_that_fails_is_not_asked_again(code: int, fetched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(code)
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        reached = connection.why_offline(f"http://127.0.0.1:{server.server_port}/timm/m/resolve/main/file") is None
        server.shutdown()
    assert reached == fetched
    assert len(asked) == 1


def test_without_the_network_inspect_leaves_out_the_labels_alone(
    closed: None, run: Callable[..., Answer], make_folder: MakeFolder
) -> None:
    folder = make_folder(classes={"blue": 6, "red": 6})
    (folder / "red" / "text.png").write_text("no picture")
    (folder / "red" / "copy.png").write_bytes((folder / "red" / "000.png").read_bytes())
    words = ("inspect", folder, "--backbone", "resnet10t", "--device", "cpu")
    found = json.loads(run(*words, "--json").out)
    assert {label: sum(counts.values()) for label, counts in found["counts"].items()} == {"blue": 6, "red": 7}
    assert [entry["path"] for entry in found["unreadable"]] == ["red/text.png"]
    assert [group["paths"] for group in found["identical"]] == [["red/000.png", "red/copy.png"]]
    assert found["sizes"]["median"] == [40, 40]
    assert found["suspects"] is None
    assert "--weights FILE" in found["not_judged"]
    told = run(*words)
    assert told.code == 0
    assert "Suspect labels are left out, because they need pretrained weights" in told.out


def test_without_the_network_fit_is_refused_and_leaves_nothing(
    closed: None, run: Callable[..., Answer], make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes={"blue": 6, "red": 6})
    answer = run("fit", folder, "--out", tmp_path / "run", "--backbone", "resnet10t")
    assert (answer.code, answer.out, len(answer.err.splitlines())) == (2, "", 1)
    assert "--backbone fewtune_conv4" in answer.err
    assert not (tmp_path / "run").exists()
