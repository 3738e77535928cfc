"""Every exported name is documented, listed in docs/reference/api.md, and has an example that runs."""

from __future__ import annotations

import doctest
import inspect
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from drawings import folder_of, small
from fake_omniglot import pictures, runs, zipped
from PIL import Image

import fewshot
import finetune

EXPORTED = [(package, name) for package in (finetune, fewshot) for name in package.__all__]
LISTED = (Path(__file__).parents[1] / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

each = pytest.mark.parametrize(("package", "name"), EXPORTED, ids=[f"{p.__name__}.{n}" for p, n in EXPORTED])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples name: photos/CLASS/, new.png; signs/CLASS/, sign.png; omniglot/; runs/photos, signs-gallery."""
    place = tmp_path_factory.mktemp("examples")
    random = np.random.default_rng(0)
    for label, base in (("cat", (40, 128, 216)), ("dog", (216, 40, 128))):
        (place / "photos" / label).mkdir(parents=True)
        for number in range(20):
            pixels = np.clip(random.normal(base, 15, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / "photos" / label / f"{number:02d}.png")
    shutil.copy(place / "photos" / "cat" / "00.png", place / "new.png")
    folder_of(place / "signs", classes=4, each=4)
    shutil.copy(place / "signs" / "class00" / "03.png", place / "sign.png")
    zipped(place / "omniglot" / "all_runs.zip", runs())
    for kind in ("background", "evaluation"):
        zipped(place / "omniglot" / f"images_{kind}.zip", pictures(kind))
    options: Any = {"strategy": "head", "backbone": "fewtune_conv4", "device": "cpu", "workers": 0}
    finetune.fit(place / "photos", place / "runs" / "photos", **options)
    fewshot.train_folder(place / "signs", place / "runs" / "signs", config=small(alphabets=1, ways=2))
    return place


@pytest.fixture
def at_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    return


@each
def test_an_exported_name_is_documented_and_listed(package: ModuleType, name: str) -> None:
    thing = getattr(package, name)
    documentation = inspect.getdoc(thing)
    assert documentation
    assert ">>> " in documentation, "no example"
    assert re.search(rf"^\| `{name}[`(]", LISTED, re.MULTILINE), "not listed in docs/reference/api.md"
    if inspect.isfunction(thing):
        assert "Args:" in documentation
        assert "Returns:" in documentation or inspect.signature(thing).return_annotation in (None, "None")


@pytest.mark.slow
@each
@pytest.mark.usefixtures("at_place")
def test_the_example_of_an_exported_name_runs(package: ModuleType, name: str) -> None:
    thing = getattr(package, name)
    known = {other: getattr(package, other) for other in package.__all__} | {"Path": Path, "np": np}
    (example,) = doctest.DocTestFinder(recurse=False).find(thing, name, globs=known)
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(example, out=said.append)
    assert result.failed == 0, "".join(said)


def test_the_list_names_nothing_that_is_not_exported() -> None:
    names = re.findall(r"^\| `(\w+)", LISTED, re.MULTILINE)
    assert sorted(names) == sorted(name for _, name in EXPORTED)
