"""A service on a free port of this machine, in a thread of this process or as a command in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from fastapi import FastAPI
from PIL import Image

import finetune
from finetune.app.running import Server

WAIT = 60.0  # seconds, on a busy machine


@contextmanager
def serving(app: FastAPI) -> Iterator[httpx.Client]:
    """A client of `app`, which uvicorn serves."""
    ready, addresses = threading.Event(), list[str]()

    def started(address: str) -> None:
        addresses.append(address)
        ready.set()

    server = Server(app, host="127.0.0.1", port=0, ready=started)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(WAIT)
        with httpx.Client(base_url=addresses[0], timeout=WAIT) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(WAIT)
        assert not thread.is_alive()


@contextmanager
def command(*words: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command that serves, as `python -m`, and the address in the first line that it prints."""
    with subprocess.Popen(
        [sys.executable, "-m", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "http://" in line, process.communicate()
            yield process, "http://" + line.split("http://")[1].split("/")[0].strip()
        finally:
            process.kill()


def connection(client: httpx.Client) -> socket.socket:
    """A connection of one's own to the service of `client`, to send what no client would."""
    made = socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=WAIT)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def small_run(place: Path) -> Path:
    """place/run, a head on 20 pictures of each of two colours in place/pictures/blue and place/pictures/red."""
    random = np.random.default_rng(0)
    for label, base in (("blue", (40, 128, 216)), ("red", (216, 40, 128))):
        (place / "pictures" / label).mkdir(parents=True)
        for number in range(20):
            pixels = np.clip(random.normal(base, 15, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / "pictures" / label / f"{number:02d}.png")
    config = finetune.Config(strategy="head", backbone="fewtune_conv4", device="cpu", workers=0, precision="float32")
    finetune.fit(place / "pictures", place / "run", config=config)
    return place / "run"
