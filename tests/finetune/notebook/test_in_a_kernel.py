"""Displays and progress in a real kernel: what a notebook keeps of a cell."""

from __future__ import annotations

import os
import sys
from typing import Any

import nbclient
import nbformat
import pytest

PROGRESS = """
import time
from rich.console import Console
from finetune.progress import Display
display = Display(Console(stderr=True))
display.say("a message <b>" + 40 * " with many words")
with display.bar("reading", 500) as advance:
    for _ in range(500):
        advance(1, "loss 0.5")
    time.sleep(0.6)
    advance(0, "")
"""
SHOWN = """
from finetune.classifier.answers.prediction import Prediction
Prediction("cat", 0.9, (("cat", 0.9), ("dog", 0.1)))
"""


def ran(*cells: str) -> list[list[Any]]:
    """The outputs of each cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    return [[output for output in cell.outputs if "data" in output] for cell in notebook.cells]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's own
def test_a_notebook_keeps_a_line_for_a_job_and_shows_a_prediction_as_bars() -> None:
    progress, (prediction,) = ran(PROGRESS, SHOWN)
    message, bar = progress
    assert "a message &lt;b&gt; with many words" in message.data["text/html"]
    assert bar.data["text/plain"].startswith("reading: 500 pictures in ")
    assert bar.data["text/plain"].endswith(" s, loss 0.5")
    assert "width:90.0%" in prediction.data["text/html"]
    assert prediction.data["text/plain"].startswith("Prediction(label='cat'")
