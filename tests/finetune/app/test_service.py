"""What clients of `finetune serve` get, well behaved or not."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from called import Answer, caller
from fastapi import FastAPI
from served import WAIT, command, connection, serving, small_run

import finetune
from finetune.app import running
from finetune.cli.main import main
from finetune.entry.signals import TWICE_SECONDS

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def classifier(run: Path) -> finetune.Classifier:
    return finetune.load(run, device="cpu")


@pytest.fixture(scope="module")
def pictures(run: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((run.parent / "pictures").rglob("*.png"))]


@pytest.fixture(scope="module")
def app(classifier: finetune.Classifier) -> FastAPI:
    return finetune.make_app(classifier, hosts={"localhost"}, most_megabytes=0.5, most_pictures=8)


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[httpx.Client]:
    with serving(app) as opened:
        yield opened


def expected(classifier: finetune.Classifier, picture: bytes) -> dict[str, Any]:
    found = classifier.predict(picture)
    shares = [{"label": label, "probability": pytest.approx(share, abs=1e-5)} for label, share in found.top]
    answer = {"label": found.label, "probability": shares[0]["probability"], "top": shares}
    return answer | {"unsure": False, "unknown": False}


def test_pictures_get_the_answers_of_the_classifier(
    client: httpx.Client, classifier: finetune.Classifier, pictures: list[bytes]
) -> None:
    one = client.post("/predict", content=pictures[0])
    assert (one.status_code, one.json()) == (200, {"predictions": [{"name": None} | expected(classifier, pictures[0])]})
    parts = [("any", ("a.png", pictures[0])), ("name", ("b.png", b"no picture")), ("goes", ("c.png", pictures[-1]))]
    several = client.post("/predict", files=parts, params={"top": 1, "min_probability": 1})
    first, second, third = several.json()["predictions"]
    assert several.status_code == 200
    assert (first["name"], first["label"], first["unsure"], len(first["top"])) == ("a.png", "blue", True, 1)
    assert second == {"name": "b.png", "error": "not a picture"}
    assert (third["name"], third["label"]) == ("c.png", "red")
    described = client.get("/metadata").json()
    assert described["classes"] == ["blue", "red"]
    assert (described["most_megabytes"], described["most_pictures"]) == (0.5, 8)
    assert set(client.get("/openapi.json").json()["paths"]) == {"/predict", "/metadata", "/healthz"}


def test_the_answer_of_a_picture_is_the_same_whatever_is_asked_beside_it(
    client: httpx.Client, pictures: list[bytes]
) -> None:
    alone = [client.post("/predict", content=picture).json() for picture in pictures[:10]]
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(client.post, "/predict", content=pictures[number % 10]) for number in range(80)]
        assert [each.result().json() for each in asked] == [alone[number % 10] for number in range(80)]


def test_a_classifier_answers_a_picture_alone_as_among_others(
    classifier: finetune.Classifier, pictures: list[bytes]
) -> None:
    together = classifier.predict_all(pictures, alone=True)
    assert together[3] == classifier.predict_all([pictures[3]], alone=True)[0]
    assert together[3] == classifier.predict_all(pictures[3:20], alone=True)[0]


def test_a_compiled_classifier_answers_a_picture_alone_as_among_others(run: Path, pictures: list[bytes]) -> None:
    classifier = finetune.load(run, device="cpu")
    options: dict[str, Any] = {"alone": True, "false_accept_rate": 0.3}
    plain = classifier.predict_all(pictures, **options)
    assert classifier.compile_alone()
    together = classifier.predict_all(pictures, **options)
    assert together != plain, "the digits of another program"
    for one, other in zip(together, plain, strict=True):
        assert isinstance(one, finetune.Prediction)
        assert isinstance(other, finetune.Prediction)
        assert (one.label, one.unknown) == (other.label, other.unknown)
        assert one.probability == pytest.approx(other.probability, abs=1e-4)
        assert one.unknown_score == pytest.approx(other.unknown_score, rel=1e-3, abs=1e-3)
    assert together[3] == classifier.predict_all([pictures[3]], **options)[0]
    assert together[3] == classifier.predict_all(pictures[3:20], **options)[0]
    unscored = classifier.predict_all(pictures, alone=True)
    assert [replace(each, unknown=False, unknown_score=None) for each in together] == unscored  # type: ignore[type-var]
    assert classifier.predict_all(pictures) == finetune.load(run, device="cpu").predict_all(pictures)
    half = finetune.load(run, device="cpu", precision="bfloat16")
    assert half.compile_alone()
    assert half.predict_all(pictures, **options) == together, "float32 whatever the precision"


def part(name: str, content: bytes) -> dict[str, Any]:
    return {"files": [("picture", (name, content))]}


@pytest.mark.parametrize(
    ("ask", "status", "reason"),
    [
        ({"content": b""}, 400, "has no picture"),
        ({"content": b"no picture"}, 422, "not a picture"),
        (part("a.ppm", b"P6 9 9 255\n"), 422, "cut short"),
        ({"content": b"P6 99999 99999 255\n"}, 422, "megapixels"),
        ({"content": bytes(600_000)}, 413, "more than 0.5 MB"),
        ({"content": iter([bytes(300_000)] * 20)}, 413, "more than 0.5 MB"),
        ({"files": [("a", ("a.png", b"x"))] * 9}, 400, "Too many files"),
        ({"files": {"a": (None, b"text")}}, 400, "no file name"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"xyz", "headers": {"Content-Type": "multipart/form-data; boundary=a"}}, 400, "multipart"),
        ({"content": b"x", "params": {"top": "many"}}, 422, "top: "),
        ({"content": b"x", "params": {"min_probability": "nan"}}, 422, "min_probability: "),
        ({"content": b"x", "params": {"false-accept-rate": 0.1}}, 422, "; did you mean false_accept_rate?"),
        ({"content": b"x", "params": {"threshold": 0.1}}, 422, "; there are top, min_probability, false_accept_rate"),
        ({"content": b"x", "headers": {"Host": "evil.example"}}, 421, "evil.example"),
        ({"content": b"x", "headers": {"Origin": "http://evil.example"}}, 403, "another site"),
        ({"content": b"x", "headers": {"Origin": "null"}}, 403, "another site"),
        ({"content": b"x", "headers": {"Sec-Fetch-Site": "same-site"}}, 403, "another site"),
        ({"method": "GET"}, 405, "Method Not Allowed"),
        ({"url": "/elsewhere"}, 404, "Not Found"),
        ({"url": "/docs", "method": "GET"}, 404, "Not Found"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_reason(
    client: httpx.Client,
    ask: dict[str, Any],
    status: int,
    reason: str,
    pictures: list[bytes],
    capfd: pytest.CaptureFixture[str],
) -> None:
    answer = client.request(**({"method": "POST", "url": "/predict"} | ask))
    assert answer.status_code == status
    assert reason in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]
    assert client.post("/predict", content=pictures[0]).status_code == 200
    assert capfd.readouterr().err == ""


def test_pictures_of_no_class_are_unknown_by_the_rate(
    client: httpx.Client, classifier: finetune.Classifier, pictures: list[bytes]
) -> None:
    shown = [*pictures, b"P6 2 2 255\n" + bytes(12), b"P6 1 1 255\n\xff\xff\xff"]
    known = classifier.predict_all(shown, false_accept_rate=0.3)
    found = []
    for start in range(0, len(shown), 8):
        parts = [("picture", ("a", each)) for each in shown[start : start + 8]]
        found += client.post("/predict", files=parts, params={"false_accept_rate": 0.3}).json()["predictions"]
    expected = [each.unknown for each in known if isinstance(each, finetune.Prediction)]
    assert [each["unknown"] for each in found] == expected
    assert set(expected) == {True, False}
    assert client.get("/metadata").json()["tells_unknown"] is True


def test_a_request_from_its_own_page_is_answered(client: httpx.Client, pictures: list[bytes]) -> None:
    own = {"Origin": str(client.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert client.post("/predict", content=pictures[0], headers=own).status_code == 200


def test_an_answer_does_not_wait_for_the_client_to_confirm_its_headers(client: httpx.Client) -> None:
    times = []
    for _ in range(40):
        asked = time.perf_counter()
        assert client.get("/healthz").status_code == 200
        times.append(time.perf_counter() - asked)
    assert sorted(times)[20] < 0.03, "clients confirm after 40 ms"


def test_clients_that_vanish_leave_nothing_behind(app: FastAPI, client: httpx.Client, pictures: list[bytes]) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 400000\r\n\r\n"
    whole = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(pictures[0])}\r\n\r\n".encode()
    for sent in (b"", b"POST /pre", head[:40], head, head + bytes(300_000), whole + pictures[0], b"\x16\x03\x01" * 9):
        for _ in range(4):
            with connection(client) as opened:
                opened.sendall(sent)
    uploads = app.state.stop.__self__
    deadline = time.monotonic() + WAIT
    while uploads._held or uploads._reading:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.post("/predict", content=pictures[0]).status_code == 200


def test_slow_clients_are_told_or_closed_and_cost_nothing_lasting(
    classifier: finetune.Classifier, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_HEADERS", 0.3)
    app = finetune.make_app(classifier)
    uploads = app.state.stop.__self__
    uploads.bounds = replace(uploads.bounds, seconds=0.3)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
    with serving(app) as asked, ExitStack() as stack:
        *silent, half = [stack.enter_context(connection(asked)) for _ in range(3)]
        for opened, sent in zip((*silent, half), (b"", head[:17], head + b"half"), strict=True):
            opened.sendall(sent)
        assert [opened.recv(1000) for opened in silent] == [b"", b""]
        answer = b""
        while b"seconds" not in answer and (part := half.recv(1000)):  # the body may come after the headers
            answer += part
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"did not arrive within 0.3 seconds" in answer
        assert asked.post("/predict", content=pictures[0]).status_code == 200
        assert uploads._held == 0


def test_more_pictures_than_may_wait_are_refused_with_a_time_and_the_others_answered(
    classifier: finetune.Classifier, pictures: list[bytes]
) -> None:
    app = finetune.make_app(classifier, most_pictures=2, most_waiting=2, most_together=1)
    with serving(app) as asked, ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda picture: asked.post("/predict", content=picture), pictures[:20] * 6))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert "try again" in refused[0].json()["detail"]
    served = [answer.json()["predictions"][0]["label"] for answer in answers if answer.status_code == 200]
    assert len(served) + len(refused) == len(answers)
    assert set(served) == {"blue"}


def test_a_token_is_wanted_of_every_request_but_for_health(
    classifier: finetune.Classifier, pictures: list[bytes]
) -> None:
    with serving(finetune.make_app(classifier, token=TOKEN)) as asked:
        assert asked.get("/healthz").json() == {"status": "ok"}
        for path in ("/metadata", "/openapi.json", "/elsewhere"):
            assert asked.get(path).status_code == 401
        for wrong in ("Bearer other", f"Digest {TOKEN}", "Bearer", "Basic !", f"Bearer {TOKEN}x", "Bearer \xe4"):
            answer = asked.post("/predict", content=pictures[0], headers=[(b"Authorization", wrong.encode("latin-1"))])
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert asked.post("/predict", content=pictures[0], headers=right).status_code == 200
        assert asked.get("/metadata", auth=("anybody", TOKEN)).status_code == 200


@pytest.mark.parametrize(
    "bounds",
    [{"most_megabytes": 0}, {"most_pictures": 0}, {"most_waiting": 0}, {"most_together": 0}, {"window": -1.0}],
)
def test_a_service_that_could_take_nothing_is_refused(classifier: finetune.Classifier, bounds: dict[str, Any]) -> None:
    with pytest.raises(finetune.InputError, match=next(iter(bounds))):
        finetune.make_app(classifier, **bounds)


def test_the_app_can_be_mounted_in_another(classifier: finetune.Classifier, pictures: list[bytes]) -> None:
    host = FastAPI()
    inner = finetune.make_app(classifier, token=TOKEN)
    host.mount("/pictures", inner)
    host.state.stop = inner.state.stop
    with serving(host) as asked:
        assert asked.get("/pictures/healthz").status_code == 200
        assert asked.get("/pictures/metadata").status_code == 401
        answer = asked.post("/pictures/predict", content=pictures[0], headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.json()["predictions"][0]["label"] == "blue"


def test_a_signal_ends_the_command_when_what_it_has_begun_is_done(
    run: Path, pictures: list[bytes], tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    words = ("serve", run, "--port", 0, "--device", "cpu", "--token-file", token)
    with command("finetune", *words) as (process, address), httpx.Client(base_url=address) as asked:
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        with connection(asked) as opened:
            opened.sendall(f"{head}Content-Length: {len(pictures[0])}\r\n\r\n".encode() + pictures[0][:100])
            time.sleep(0.3)
            for _ in range(2):  # supervisors signal a process twice, itself and its group
                process.send_signal(signal.SIGTERM)
                time.sleep(0.1)
            opened.sendall(pictures[0][100:])
            answer = opened.recv(10_000)
        _, said = process.communicate(timeout=WAIT)
    assert answer.startswith(b"HTTP/1.1 200")
    starting = f"{run}: starting; the network is prepared first, which takes some seconds\n"
    assert (process.returncode, said) == (143, f"{starting}finetune: stopped\n")


def test_a_later_second_signal_waits_for_no_request(run: Path) -> None:
    words = ("try", run, "--no-browser", "--port", 0, "--device", "cpu", "--host", "0.0.0.0")
    with (
        command("finetune", *words) as (process, address),
        httpx.Client(base_url=address) as asked,
        connection(asked) as opened,
    ):
        opened.sendall(b"POST /answer HTTP/1.1\r\nHost: localhost\r\nX-Fewtune-Page: 1\r\nContent-Length: 100\r\n\r\n")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(2 * TWICE_SECONDS)
        assert process.poll() is None, "the first signal waits for the request"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=WAIT)
        with suppress(ConnectionResetError):
            assert b" 408 " not in opened.recv(10_000), "it waited until the request was given up"
    warned, stopped = said.splitlines()
    assert warned.startswith("warning: everybody who can reach 0.0.0.0 can ask, and no token is set")
    assert (process.returncode, stopped) == (130, "finetune: stopped")


def test_what_the_command_cannot_use_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], client: httpx.Client
) -> None:
    call = caller(main, "finetune", monkeypatch, capfd)
    short = tmp_path / "token"
    short.write_text("short")
    refused(call("serve", run, "--token-file", short), "must hold a token of 16 or more")
    monkeypatch.setenv("FEWTUNE_TOKEN", "short")
    refused(call("serve", run), "FEWTUNE_TOKEN must hold a token")
    monkeypatch.delenv("FEWTUNE_TOKEN")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "uvicorn", None)
        refused(call("serve", run), "pip install 'fewtune[app]'")
    refused(call("serve", tmp_path, "--device", "cpu"), "is not a run folder")
    refused(call("serve", run, "--device", "cpu", "--port", client.base_url.port), "--port 0 takes a free port")


def refused(answer: Answer, message: str) -> None:
    """One line on stderr, exit code 2."""
    assert answer.code == 2
    assert message in answer.err
    assert answer.err.count("\n") == 1
