from __future__ import annotations

import errno
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from called import Answer, caller
from PIL import Image
from torch import Tensor

import finetune
from finetune.classifier.classifier import Classifier
from finetune.classifier.export import TOLERANCE, Served, export
from finetune.cli.main import main
from finetune.computing.openvino_module import openvino_core
from finetune.errors import InputError
from finetune.files.reading import read_json
from finetune.models.backbone import Backbone, Network
from finetune.models.device import open_engine
from finetune.models.pooled import PooledStages

pytestmark = pytest.mark.slow

CLASSES = ["blue", 'größe "red" <b>']


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pictures`, and `run` on them at a temperature of its own, in a folder."""
    folder = tmp_path_factory.mktemp("export")
    random = np.random.default_rng(0)
    for position, label in enumerate(CLASSES):
        (folder / "pictures" / label).mkdir(parents=True)
        for number in range(30):
            size = (40 + number, 52 - number // 2, 3)
            pixels = np.clip(random.normal((90 + 40 * position, 120, 150), 60, size), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "pictures" / label / f"{number:03d}.png")
    finetune.fit(folder / "pictures", folder / "run", backbone="fewtune_conv4", strategy="head", device="cpu")
    change(folder / "run", temperature=1.7)
    return folder


@pytest.fixture(scope="module")
def exported(place: Path) -> Path:
    export(place / "run", place / "made" / "pets.onnx")
    return place / "made" / "pets.onnx"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "finetune", monkeypatch, capfd)


def change(run: Path, **values: object) -> None:
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    (run / "config.json").write_text(json.dumps({**config, **values}), encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def infer(file: Path | bytes, pixels: Tensor) -> Tensor:
    core = openvino_core()
    compiled = core.compile_model(core.read_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.tensor(compiled([pixels.numpy()])[0])


def test_the_onnx_file_agrees_with_the_run(place: Path, exported: Path) -> None:
    paths = sorted((place / "pictures").rglob("*.png"))
    classifier = finetune.load(place / "run", device="cpu", precision="float32")
    pixels = classifier.pictures(paths).batch(range(len(paths))).pixels
    wanted = classifier.predict_all(paths)
    for n in (1, 7, len(paths)):
        found = infer(exported, pixels[:n])
        for row, prediction in zip(found, wanted, strict=False):
            assert isinstance(prediction, finetune.Prediction)
            assert classifier.classes[int(row.argmax())] == prediction.label
            assert float(row.max()) == pytest.approx(prediction.probability, abs=1e-5)


def test_preprocessing_is_described_in_the_file_and_beside_it(place: Path, exported: Path) -> None:
    about = read_json(exported.with_name("pets.onnx.json"))
    saved = read_json(place / "run" / "config.json")
    assert about["classes"] == CLASSES == saved["classes"]
    assert about["temperature"] == 1.7
    for name, value in saved["preprocessing"].items():
        assert about["preprocessing"][name] == value
    assert about["preprocessing"]["shortest_side"] >= about["preprocessing"]["size"]
    size = about["preprocessing"]["size"]
    assert about["input"] == {"name": "pixels", "dtype": "uint8", "shape": ["n", 3, size, size]}
    assert about["parity"]["labels_equal"] is True
    assert about["parity"]["largest_difference"] <= about["parity"]["tolerance"]
    assert about["parity"]["pictures"] == read_json(place / "run" / "metrics.json")["pictures"]["val"]

    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    inside = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(inside["classes"]) == CLASSES
    assert json.loads(inside["preprocessing"]) == about["preprocessing"]
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == about["opset"] == 18


def test_a_torch_export_agrees_with_the_run_and_holds_no_pickle(place: Path) -> None:
    before = contents(place / "run")
    about = export(place / "run", format="torch-export")
    file = place / "run.pt2"
    assert about == read_json(place / "run.pt2.json")
    assert contents(place / "run") == before
    with zipfile.ZipFile(file) as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    payloads = [json.loads(value) for name, value in inside.items() if name.endswith("_config.json")]
    assert payloads
    assert not any(entry["use_pickle"] for payload in payloads for entry in payload["config"].values())
    assert not any(value.startswith((b"\x80\x02", b"\x80\x04", b"PK")) for value in inside.values())
    extra: dict[str, str] = {"about.json": ""}
    module = torch.export.load(io.BytesIO(file.read_bytes()), extra_files=extra).module()
    assert json.loads(json.loads(extra["about.json"])["classes"]) == CLASSES
    paths = sorted((place / "pictures").rglob("*.png"))[::15]
    classifier = finetune.load(place / "run", device="cpu", precision="float32")
    pixels = classifier.pictures(paths).batch(range(len(paths))).pixels
    torch.testing.assert_close(module(pixels), classifier.log_probabilities(paths)[0].exp(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("test_time", ["flip", "ten-crop"])
def test_views_are_averaged_in_the_graph(test_time: str, place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run", tmp_path / "run")
    config = read_json(place / "run" / "config.json")["config"]
    change(tmp_path / "run", config={**config, "test_time": test_time})
    about = export(tmp_path / "run", format="torch-export")
    assert about["views"] == test_time
    assert about["input"]["shape"][1:-2] == ([10, 3] if test_time == "ten-crop" else [3])


def test_a_head_that_reads_several_depths_is_exported(place: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = Backbone("fewtune_conv4").eval()
    stages = PooledStages(backbone)
    network = Network(backbone, torch.nn.Linear(sum(stages.widths[-3:]), 2), stages.hooks)
    config = finetune.Config(backbone="fewtune_conv4", device="cpu", precision="float32")
    fabric = open_engine("cpu", "float32")
    Classifier(network, CLASSES, backbone.preprocessing, config, fabric).save(tmp_path / "run")
    about = export(tmp_path / "run", format="torch-export", pictures=place / "pictures" / "blue")
    assert about["parity"]["pictures"] == 30


def test_an_export_that_does_not_agree_keeps_the_old_file(  # type: ignore[no-untyped-def]
    run, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, right = tmp_path / "pets.pt2", Served.forward
    target.write_bytes(b"before")
    monkeypatch.setattr(Served, "forward", lambda self, pixels: right(self, pixels) + TOLERANCE / 2)
    answer = run("export", place / "run", "--format", "torch-export", "--out", target, "--tolerance", TOLERANCE / 4)
    assert answer.code == 2
    assert "does not agree" in answer.err
    assert "--tolerance" in answer.err
    assert contents(tmp_path) == {"pets.pt2": b"before"}


def test_the_command_prints_what_it_checked(run, place: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for left in (f".a.pt2.{1 << 30}", f".a.pt2.json.{1 << 30}"):  # of killed processes
        (tmp_path / left).touch()
    answer = run("export", place / "run", "--format", "torch-export", "--out", tmp_path / "a.pt2", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert json.loads(answer.out) == read_json(tmp_path / "a.pt2.json")
    assert sorted(contents(tmp_path)) == ["a.pt2", "a.pt2.json"]


def test_a_description_never_stands_beside_another_file(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, replace = tmp_path / "a.pt2", os.replace
    target.write_bytes(b"before")
    (tmp_path / "a.pt2.json").write_text("{}")

    def fails_for_descriptions(source: Path, place: Path) -> None:
        if place.suffix == ".json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, place)

    monkeypatch.setattr(os, "replace", fails_for_descriptions)
    with pytest.raises(InputError, match=r"a\.pt2\.json cannot be written"):
        export(place / "run", target, format="torch-export")
    assert list(contents(tmp_path)) == ["a.pt2"]
    assert target.read_bytes() != b"before"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["{run}", "--out", "{run}/model.onnx"], "lies in the run"),
        (["{run}", "--out", "{new}/model.pt2"], "must end in .onnx"),
        (["{run}", "--out", "{folder}"], "is a folder"),
        (["{run}", "--format", "tflite"], "--format"),
        (["{run}", "--tolerance", "0"], "--tolerance"),
        (["{run}", "--tolerance", "nan"], "--tolerance"),
        (["{pictures}"], "config.json"),
        (["{run}", "--pictures", "{new}"], "--pictures"),
        (["{run}", "--pictures", "{empty}"], "holds no pictures"),
        (
            ["{run}", "--format", "torch-export", "--out", "{new}/a.pt2", "--pictures", "{text}"],
            "text.png: not a picture",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(  # type: ignore[no-untyped-def]
    words: list[str], named: str, run, place: Path, tmp_path: Path
) -> None:
    before = contents(place / "run")
    places = {"run": place / "run", "pictures": place / "pictures", "new": tmp_path / "new"}
    places |= {"empty": tmp_path / "empty", "folder": tmp_path / "a.onnx", "text": tmp_path / "text.png"}
    places["empty"].mkdir()
    places["folder"].mkdir()
    places["text"].write_text("hello")
    answer = run("export", *(word.format(**places) for word in words))
    assert (answer.code, answer.out) == (2, "")
    assert named in answer.err.splitlines()[-1]
    assert "Traceback" not in answer.err
    assert contents(place / "run") == before
    assert not [path for path in tmp_path.rglob("*.*") if path not in places.values()]


def test_missing_pictures_can_be_replaced_by_others(run, place: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(place / "run", tmp_path / "run")
    change(tmp_path / "run", folder=str(tmp_path / "gone"))
    words = ("export", tmp_path / "run", "--format", "torch-export")
    answer = run(*words)
    assert answer.code == 2
    assert "is gone" in answer.err
    assert "--pictures FOLDER" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not list(tmp_path.glob("*.pt2*"))
    assert "every label" in run(*words, "--pictures", place / "pictures" / "blue").err
    assert read_json(tmp_path / "run.pt2.json")["parity"]["pictures"] == 30


@pytest.mark.parametrize("damage", ["missing", "columns", "empty", "long"])
def test_a_run_that_names_no_pictures_says_what_to_do(damage: str, run, place: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(place / "run", tmp_path / "run")
    table = tmp_path / "run" / "pictures.csv"
    if damage == "missing":
        table.unlink()
    else:
        table.write_text({"columns": "a,b\n1,2\n", "empty": "path,split\n", "long": "a" * 200_000}[damage])
    answer = run("export", tmp_path / "run")
    assert (answer.code, len(answer.err.splitlines())) == (2, 1)
    assert "--pictures FOLDER" in answer.err
