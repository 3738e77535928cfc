"""Services under load: requests a second beside the bare model, and clients that send anything or hang up.

    FEWTUNE_DATA=DATA python benchmarks/service.py [--parts speed gallery torture] [--requests 10000] [--seconds 20]

speed: 1, 8 and 64 clients, each with one connection, send flowers one after the other to `finetune serve` in a
process of its own; requests a second and the 50th and 99th percentile of their time. Beside it, in the same rounds:
the service with batches of one picture, the service whose network is not compiled, and the bare model on lists of
pictures (`predict_all`: in batches, each picture alone, and alone with the compiled network) and on one picture after
the other. Clients and service share the cores. gallery: the same for `fewshot serve`, of the first picture of each
class, and `recognize_all`. torture: requests of 16 clients, of which one in ten has several pictures, one in twenty
is broken, and one in twenty hangs up. Every answer is compared with that of `predict_all(..., alone=True)` with the
compiled network, digit by digit; memory and open files of the service are read as it goes.
benchmarks/results/service.json gets every round, and every PIECE of the requests, each of a new service; what it has
is not made again.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from machine import provenance, version

import fewshot
import finetune
from fewshot.recognition.gallery_files import GALLERY_FILE
from finetune.files.reading import read_json
from finetune.files.writing import write_json
from finetune.options.command_line import NEW_OBJECTS

RESULT = Path(__file__).parent / "results" / "service.json"
BACKBONE = "tf_mobilenetv3_small_100"
CLIENTS = (1, 8, 64)
COMPILED, PLAIN = "compiled", "plain"
ROUNDS = 3
TORTURERS = 16
PIECE = 2500
WAIT = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["speed", "gallery", "torture"])
    parser.add_argument("--requests", type=int, default=10_000, help="of the torture")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement of speed")
    parser.add_argument(
        "--serve", nargs=3, metavar=("FOLDER", "TOGETHER", "HOW"), help="be the service that is measured"
    )
    args = parser.parse_args()
    if args.serve:
        serve(Path(args.serve[0]), int(args.serve[1]), compiled=args.serve[2] == COMPILED)
        return
    data = Path(os.environ["FEWTUNE_DATA"])
    results: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        weights = data / "weights" / f"{BACKBONE}.safetensors"
        options: dict[str, Any] = {"strategy": "head", "backbone": BACKBONE, "weights": weights, "device": "cpu"}
        finetune.fit(data / "flowers" / "val", run, **options)
        pictures = [path.read_bytes() for path in sorted((data / "flowers" / "train").rglob("*.jpg"))[::8]]
        if "speed" in args.parts:
            speed("speed", run, pictures, args.seconds, results)
        if "gallery" in args.parts:
            speed("gallery", gallery_of(data, Path(place) / "gallery"), pictures, args.seconds, results)
        if "torture" in args.parts:
            torture(run, pictures, args.requests, results)


def save(results: dict[str, Any], **part: Any) -> None:
    packages = {package: version(package) for package in ("fastapi", "uvicorn", "starlette", "openvino")}
    results |= part | {"provenance": provenance(), "packages": packages}
    write_json(RESULT, results)


def gallery_of(data: Path, folder: Path) -> Path:
    """A gallery of the first picture of each flower, by the backbone of the run."""
    weights = data / "weights" / f"{BACKBONE}.safetensors"
    recognizer = fewshot.Recognizer(fewshot.Embedder.load(BACKBONE, weights=weights, device="cpu"))
    for label in sorted((data / "flowers" / "train").iterdir()):
        recognizer.enrol(label.name, min(label.glob("*.jpg")))
    recognizer.save(folder)
    return folder


class Subject:
    """What is served from a folder: the classifier of a run, or the recogniser of a gallery."""

    def __init__(self, folder: Path, *, compiled: bool = False):
        self.name = "recognize_all" if (folder / GALLERY_FILE).exists() else "predict_all"
        self._served: Any
        if self.name == "recognize_all":
            self._served = fewshot.Recognizer.load(folder, device="cpu")
            self._compiles = self._served.embedder
        else:
            self._served = self._compiles = finetune.load(folder, device="cpu")
        if compiled:
            assert self._compiles.compile_alone()

    def app(self, **options: Any) -> FastAPI:
        make_app = fewshot.make_app if self.name == "recognize_all" else finetune.make_app
        return make_app(self._served, hosts={"localhost"}, **options)

    def answers(self, pictures: Sequence[bytes], *, alone: bool) -> None:
        if self.name == "recognize_all":
            self._served.recognize_all(pictures, nearest=True, alone=alone)
        else:
            self._served.predict_all(pictures, alone=alone)


def serve(folder: Path, together: int, *, compiled: bool) -> None:
    from finetune.app.running import Server

    gc.set_threshold(NEW_OBJECTS)  # as commands do: searches for garbage stop all requests
    app = Subject(folder).app(most_together=together, compiled=compiled)
    server = Server(app, host="127.0.0.1", port=0, ready=lambda address: print(address, flush=True))
    server.run()


@dataclass
class Served:
    """A service in a process of its own."""

    process: subprocess.Popen[str]
    port: int
    errors: Path

    def memory(self) -> float:
        """Resident memory in MB."""
        line = next(
            line for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if "VmRSS" in line
        )
        return int(line.split()[1]) / 1000

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextmanager
def service(run: Path, words: Sequence[object]) -> Iterator[Served]:
    """words: After `python`; the first line of stdout has the address."""
    errors = run.parent / "stderr"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split("http://")[1].split("/")[0]
            yield Served(process, int(address.split(":")[1]), errors)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(WAIT)


# --- speed ------------------------------------------------------------------------------------------------------------


def speed(part: str, folder: Path, pictures: Sequence[bytes], seconds: float, results: dict[str, Any]) -> None:
    found = results.get(part, {"backbone": BACKBONE, "seconds": seconds, "rounds": []})
    if len(found["rounds"]) >= ROUNDS:
        return
    plain, compiled = Subject(folder), Subject(folder, compiled=True)
    ways = {"service": (32, COMPILED), "batches of one": (1, COMPILED), "not compiled": (32, PLAIN)}
    with ExitStack() as stack:
        services = {
            name: stack.enter_context(service(folder, [__file__, "--serve", folder, *words]))
            for name, words in ways.items()
        }
        for served in services.values():
            load(served, pictures, 8, 2.0)  # warm-up
        for each in (plain, compiled):
            bare(each, pictures, 64, 1.0, alone=True)
        while len(found["rounds"]) < ROUNDS:
            figures: dict[str, Any] = {}
            for clients in CLIENTS:
                for name, served in services.items():
                    figures[f"{name}, {clients} clients"] = load(served, pictures, clients, seconds)
            name = plain.name
            figures[f"{name}, 64 pictures"] = bare(plain, pictures, 64, seconds)
            figures[f"{name}, 64 pictures alone"] = bare(plain, pictures, 64, seconds, alone=True)
            figures[f"{name}, 64 pictures alone, compiled"] = bare(compiled, pictures, 64, seconds, alone=True)
            figures[f"{name}, 1 picture"] = bare(plain, pictures, 1, seconds)
            found["rounds"].append(figures)
            print(json.dumps({"round": len(found["rounds"])} | figures), flush=True)
            save(results, **{part: found | {"median": medians(found["rounds"])}})


def medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: {
            key: round(statistics.median(each[name][key] for each in rounds), 2)
            for key in rounds[0][name]
            if key != "statuses"
        }
        for name in rounds[0]
    }


def bare(
    subject: Subject, pictures: Sequence[bytes], count: int, seconds: float, *, alone: bool = False
) -> dict[str, float]:
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        first = done % (len(pictures) - count)
        subject.answers(pictures[first : first + count], alone=alone)
        done += count
    return {"pictures_per_second": round(done / (time.perf_counter() - started), 2)}


def load(served: Served, pictures: Sequence[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Closed loop: each client sends its next picture when it has the answer to the last. Clients are no threads, which
    would wait for each other."""
    times: list[float] = []
    statuses: Counter[int] = Counter()

    async def client(number: int, end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        place = number * 7
        while (asked := time.perf_counter()) < end:
            picture = pictures[place % len(pictures)]
            writer.write(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(picture) + picture
            )
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT)).decode().lower()
            await asyncio.wait_for(reader.readexactly(int(head.split("content-length: ")[1].split("\r")[0])), WAIT)
            times.append(time.perf_counter() - asked)
            statuses[int(head.split()[1])] += 1
            place += 1
        writer.close()

    async def all_clients() -> None:
        end = time.perf_counter() + seconds
        await asyncio.gather(*(client(number, end) for number in range(clients)))

    started = time.perf_counter()
    asyncio.run(all_clients())
    taken = time.perf_counter() - started
    quantiles = statistics.quantiles(times, n=100)
    return {
        "requests_per_second": round(len(times) / taken, 2),
        "p50_ms": round(1000 * quantiles[49], 1),
        "p99_ms": round(1000 * quantiles[98], 1),
        "statuses": dict(statuses),
    }


# --- torture ----------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What the clients of the torture have seen."""

    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def torture(run: Path, pictures: Sequence[bytes], requests: int, results: dict[str, Any]) -> None:
    few = pictures[:100]
    classifier = finetune.load(run, device="cpu")
    classifier.compile_alone()
    rate = 1.0  # as the service asks, so that the same network runs
    known = [row_of(found) for found in classifier.predict_all(few, alone=True, false_accept_rate=rate)]
    pieces: list[dict[str, Any]] = results.get("torture", [])
    while (done := sum(piece["requests"] for piece in pieces)) < requests:
        pieces.append(piece_of(run, few, known, range(done, min(done + PIECE, requests))))
        print(json.dumps(pieces[-1]), flush=True)
        save(results, torture=pieces)


def piece_of(run: Path, few: Sequence[bytes], known: Sequence[tuple[str, float]], requests: range) -> dict[str, Any]:
    """The requests of these numbers, to a service of their own."""
    tally, lock, samples = Tally(), threading.Lock(), []
    numbers = iter(requests)
    words = ["-m", "finetune", "serve", run, "--port", 0, "--device", "cpu", "--most-megabytes", 4]
    with service(run, words) as served:
        load(served, few, 8, 3.0)
        started = time.monotonic()

        def client(_: int) -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                one_request(served, few, known, random.Random(number), tally, lock)
                if number % max(1, len(requests) // 10) == 0:
                    with lock:
                        samples.append({"request": number, "mb": round(served.memory(), 1), "files": served.files()})

        with ThreadPoolExecutor(TORTURERS) as pool:
            list(pool.map(client, range(TORTURERS)))
        seconds = time.monotonic() - started
        time.sleep(12)  # until connections without a request are closed
        end = {"mb": round(served.memory(), 1), "files": served.files()}
        served.process.send_signal(signal.SIGTERM)
        code = served.process.wait(WAIT)
        said = served.errors.read_text()
    return {
        "requests": len(requests),
        "seconds": round(seconds, 1),
        "kinds": dict(sorted(tally.kinds.items())),
        "statuses": dict(sorted(tally.statuses.items())),
        "wrong": len(tally.wrong),
        "first_wrong": tally.wrong[:3],
        "samples": samples,
        "end": end,
        "exit_code": code,
        "stderr": said,
        "tracebacks": said.count("Traceback"),
    }


def row_of(found: Any) -> tuple[str, float]:
    return found.label, round(found.probability, 6)


def one_request(
    served: Served,
    pictures: Sequence[bytes],
    known: Sequence[tuple[str, float]],
    chance: random.Random,
    tally: Tally,
    lock: Any,
) -> None:
    """Send one request, and compare its answer."""
    place = chance.randrange(len(pictures))
    draw = chance.random()
    if draw < 0.05:
        kind, body, kind_of_body, wanted = broken(pictures[place], chance)
        status, _ = asked(served, body, kind_of_body)
        right = status in wanted
    elif draw < 0.10:
        kind, status, right = "hang up", 0, True
        hang_up(served, pictures[place], chance)
    elif draw < 0.20:
        kind = "several pictures"
        chosen = [chance.randrange(len(pictures)) for _ in range(chance.randint(2, 8))]
        parts = [pictures[each] for each in chosen] + ([b"no picture"] if chance.random() < 0.3 else [])
        status, answer = asked(served, form(parts), "multipart/form-data; boundary=frontier")
        rows = answer.get("predictions", [])
        found = [(each.get("label"), each.get("probability")) for each in rows[: len(chosen)]]
        right = status == 200 and found == [known[each] for each in chosen]
        right = right and [each.get("error") for each in rows[len(chosen) :]] == ["not a picture"] * (
            len(parts) - len(chosen)
        )
    else:
        kind = "one picture"
        status, answer = asked(served, pictures[place], "image/jpeg")
        rows = answer.get("predictions", [{}])
        right = status == 200 and (rows[0].get("label"), rows[0].get("probability")) == known[place]
    with lock:
        tally.kinds[kind] += 1
        tally.statuses[f"{kind}: {status or 'none'}"] += 1
        if not right:
            tally.wrong.append(f"{kind}: {status}")


def broken(picture: bytes, chance: random.Random) -> tuple[str, bytes, str, tuple[int, ...]]:
    """An upload that cannot be answered: its kind, body, content type, and the statuses that are right for it."""
    cut = picture[: chance.randrange(1, len(picture) // 2)]
    return chance.choice(
        [
            ("cut picture", cut, "image/jpeg", (422,)),
            ("noise", chance.randbytes(chance.randrange(1, 50_000)), "image/jpeg", (422,)),
            ("nothing", b"", "image/jpeg", (400,)),
            ("too large", bytes(5_000_000), "image/jpeg", (413,)),
            ("too many pixels", b"P6 99999 99999 255\n" + bytes(100), "image/jpeg", (422,)),
            (
                "cut form",
                form([picture])[: -chance.randrange(1, 200)],
                "multipart/form-data; boundary=frontier",
                (400,),
            ),
            ("form without boundary", picture, "multipart/form-data", (400,)),
            ("noise as a form", chance.randbytes(9_000), "multipart/form-data; boundary=frontier", (400,)),
        ]
    )


def form(parts: Sequence[bytes]) -> bytes:
    head = b'--frontier\r\nContent-Disposition: form-data; name="a"; filename="a.jpg"\r\n\r\n'
    return b"".join(head + part + b"\r\n" for part in parts) + b"--frontier--\r\n"


def asked(served: Served, body: bytes, content_type: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=WAIT)
    try:
        connection.request("POST", "/predict", body, {"Content-Type": content_type})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (ConnectionError, http.client.HTTPException) as error:
        return -1, {"error": repr(error)}
    finally:
        connection.close()


def hang_up(served: Served, picture: bytes, chance: random.Random) -> None:
    """Close the connection at a random place: in the headers, in the body, or before the answer; some abruptly."""
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
    whole = head + picture
    with socket.create_connection(("127.0.0.1", served.port), timeout=WAIT) as connection:
        connection.sendall(whole[: chance.choice([0, 10, len(head), chance.randrange(len(whole)), len(whole)])])
        if chance.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        time.sleep(chance.choice([0, 0, 0.01]))


if __name__ == "__main__":
    main()
