from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from called import Answer, caller
from conftest import MakeFolder
from contents import counts_of

import finetune
from finetune.api.inspect import inspect_folder
from finetune.api.preview import probe_folder
from finetune.cli.main import main
from finetune.config import Config
from finetune.data.collection.collection import pictures_at
from finetune.data.table import list_pictures
from finetune.errors import InputError
from finetune.files.tables import write_csv

SMALL: dict[str, Any] = {"backbone": "fewtune_conv4", "device": "cpu", "strategy": "head"}


class Frame:
    """A data frame as far as pandas and polars agree: columns by name."""

    def __init__(self, **columns: list[Any]):
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, name: str) -> list[Any]:
        return self._columns[name]


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files without classes around them, in the working directory."""
    for name in ("a.jpg", "b.jpg", "deep/c.jpg", "d d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


def listed(source: Any, **options: Any) -> list[tuple[str, str, str | None]]:
    return [(each.path, each.label, each.split) for each in list_pictures(source, **options).samples]


def refusal(source: Any) -> str:
    with pytest.raises(InputError) as caught:
        list_pictures(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


ROWS = [("deep/c.jpg", "größe", "val"), ("a.jpg", "größe", None), ("b.jpg", "dog", ""), ("d d.jpg", "dog", "train")]
EXPECTED = [
    ("a.jpg", "größe", None),
    ("b.jpg", "dog", None),
    ("d d.jpg", "dog", "train"),
    ("deep/c.jpg", "größe", "val"),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_a_csv_file_names_pictures_below_its_own_folder(
    pictures: Path, encoding: str, sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["label,split,path,note", "größe,Validation,deep/../deep/c.jpg,x", "größe,,a.jpg,", "", " dog ,,b.jpg"]
    path = table(pictures, "\r\n".join([*lines, "dog,train,d d.jpg,"]).replace(",", sign), encoding)
    monkeypatch.chdir(pictures.parent)
    assert listed(path) == EXPECTED
    listing = list_pictures(path)
    assert (listing.root, listing.table, listing.classes) == (pictures, str(path), ("dog", "größe"))
    assert [sample.size for sample in listing.samples] == [5, 5, 7, 10]


def test_lists_and_frames_name_pictures_below_the_working_directory(pictures: Path) -> None:
    assert listed(ROWS) == EXPECTED
    assert listed([list(row) for row in ROWS]) == EXPECTED
    assert listed([(pictures / "a.jpg", "x"), ("b.jpg", 3)]) == [
        (str(pictures / "a.jpg"), "x", None),
        ("b.jpg", "3", None),
    ]
    paths, labels, splits = (list(column) for column in zip(*ROWS, strict=True))
    assert (
        listed(Frame(path=paths, label=labels, split=[float("nan") if each is None else each for each in splits]))
        == EXPECTED
    )
    assert listed(Frame(id=[1, 2], label=[0, 1], path=["a.jpg", "b.jpg"])) == [
        ("a.jpg", "0", None),
        ("b.jpg", "1", None),
    ]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_of_real_libraries(pictures: Path, library: str) -> None:
    package = pytest.importorskip(library)
    paths, labels, splits = (list(column) for column in zip(*ROWS, strict=True))
    assert listed(package.DataFrame({"path": paths, "label": labels, "split": splits})) == EXPECTED


def test_a_picture_that_is_named_twice_counts_once(pictures: Path) -> None:
    listing = list_pictures([("a.jpg", "x"), ("b.jpg", "y"), (pictures / "deep" / ".." / "a.jpg", "x")])
    assert [sample.path for sample in listing.samples] == ["a.jpg", "b.jpg"]
    assert listing.notes == ("Rows that repeat a picture, ignored: 1.",)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("path,label\na.jpg,x\nnone.jpg,y\n", "labels.csv, row 3: {folder}/none.jpg does not exist"),
        ("path,label\na.jpg,x\ndeep,y\n", "row 3: {folder}/deep is a folder"),
        ("path,label\na.jpg,x\nb.jpg, \n", "labels.csv, row 3 has no label, for b.jpg"),
        ("path,label\na.jpg,x\n,y\n", "labels.csv, row 3 has no path"),
        ("path,label,split\na.jpg,x,dev\n", "row 2 has the split 'dev'; it must be train, val, test"),
        ("path,label\na.jpg,x\nb.jpg,y\na.jpg,y\n", "row 2 and {folder}/labels.csv, row 4 name one picture, a.jpg"),
        ("path,label,split\na.jpg,x,train\na.jpg,x,val\n", "two splits: 'train' and 'val'"),
        ("file,label\na.jpg,x\n", "no column 'path' but 'file', 'label'; its header must be path,label"),
        ("a.jpg,x\nb.jpg,y\n", "no column 'path'"),
        ("", "no column 'path' but none"),
        ("path,label,label\na.jpg,x,y\n", "two columns 'label'"),
        ("path,label\n", "names no pictures"),
        ("path,label\na.jpg,x,1,2\n", "row 2 has 4 cells"),
        ('path,label\na.jpg,"x\n', "is not valid CSV"),
        ("path,label\na.jpg,x\nb.jpg,x\n", "has one class, 'x'"),
        ("path,label,split\na.jpg,x,\nb.jpg,y,\ndeep/c.jpg,z,test\n", "class 'z' in test/"),
        ("path,label\na.jpg,Cat\nb.jpg,cat\n", "differ only in case"),
    ],
)
def test_an_error_in_a_csv_file_names_its_row(pictures: Path, text: str, named: str) -> None:
    path = table(pictures, text)
    assert named.format(folder=pictures) in refusal(path)
    assert str(path) in refusal(path)


def test_what_is_no_table_is_named(pictures: Path) -> None:
    assert "is not UTF-8" in refusal(table(pictures, "path,label\na.jpg,größe\n", "latin-1"))
    assert "a.jpg is neither a folder nor a table" in refusal(pictures / "a.jpg")
    assert "entry 1 of the list (the first is 0)" in refusal([("a.jpg", "x"), "b.jpg"])
    assert "entry 0 of the list" in refusal([("a.jpg",)])
    assert "not int" in refusal(3)
    assert "the data frame has no column 'label'" in refusal(Frame(path=["a.jpg"], kind=["x"]))
    assert "row 1 of the data frame (the first is 0) has no label" in refusal(
        Frame(path=["a.jpg", "b.jpg"], label=["x", None])
    )
    assert "the list of pictures names no pictures" in refusal([])


def test_pictures_to_predict_are_files_folders_and_the_paths_of_tables(pictures: Path) -> None:
    path = table(pictures, "id,path\n1,deep/c.jpg\n2,gone.jpg\n3,\n")
    assert [Path(picture.key) for picture in pictures_at([pictures / "a.jpg", path, pictures / "deep"])] == [
        pictures / "a.jpg",
        pictures / "deep" / "c.jpg",
        pictures / "gone.jpg",
        pictures / "deep" / "c.jpg",
    ]
    with pytest.raises(InputError, match="no column 'path'"):
        list(pictures_at([table(pictures, "file\na.jpg\n")]))
    with pytest.raises(InputError, match=r"gone\.jpg does not exist"):
        pictures_at([pictures / "a.jpg", pictures / "gone.jpg"])


# ---- where a folder is taken


@pytest.fixture
def labels(make_folder: MakeFolder, tmp_path: Path) -> Path:
    """A CSV file of 40 pictures; the paths say nothing of the classes."""
    folder = make_folder(classes={"blue": 20, "red": 20})
    (tmp_path / "flat").mkdir()
    rows = []
    for path in sorted(folder.glob("*/*.png")):
        name = f"{path.parent.name[::-1]}-{path.name}"
        shutil.move(path, tmp_path / "flat" / name)
        rows.append((f"flat/{name}", path.parent.name))
    table = tmp_path / "labels.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return table


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "finetune", monkeypatch, capfd)


@pytest.mark.slow
def test_every_command_that_takes_a_folder_takes_a_table(
    run: Callable[..., Answer], labels: Path, tmp_path: Path
) -> None:
    options, out = ("--backbone", "fewtune_conv4", "--device", "cpu"), tmp_path / "run"
    fitted = run("fit", labels, "--out", out, "--json", "--strategy", "head", *options)
    assert fitted.code == 0, fitted.err
    made = json.loads((out / "config.json").read_text())
    assert (made["folder"], made["table"]) == (str(tmp_path), str(labels))
    assert f"finetune fit {labels} --out {out}" in (out / "report.html").read_text()
    with (out / "pictures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert counts_of({f"{row['label']}/{row['path'].replace('/', '-')}": row["split"] for row in rows}) == {
        label: {"train": 14, "val": 3, "test": 3} for label in ("blue", "red")
    }
    assert all((tmp_path / row["path"]).exists() for row in rows)
    for resumed, code in ((labels, 0), (tmp_path / "flat", 2)):
        assert run("fit", resumed, "--out", out, "--resume", "--json", "--strategy", "head", *options).code == code

    measured = run("evaluate", out, labels, "--json")
    assert json.loads(measured.out)["left_out_trained_on"] == 34, measured.err
    assert run("evaluate", out, labels, "--json").code == 0
    assert [path.name for path in (out / "evaluations").iterdir()] == ["labels"]
    found = json.loads(run("inspect", labels, "--json", *options).out)
    assert {label: sum(counts.values()) for label, counts in found["counts"].items()} == {"blue": 20, "red": 20}
    assert run("probe", labels, "--json", *options).code == 0
    assert run("lr-find", labels, "--json", "--strategy", "partial", "--unfreeze", "blocks.3", *options).code == 0


@pytest.mark.slow
def test_the_api_takes_rows_too(labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with labels.open(newline="") as file:
        rows = [(row["path"], row["label"]) for row in csv.DictReader(file)]
    classifier = finetune.fit(rows, tmp_path / "run", **SMALL)
    assert classifier.classes == ("blue", "red")
    frame = Frame(path=[path for path, _ in rows], label=[label for _, label in rows])
    assert finetune.evaluate(tmp_path / "run", frame)["left_out_trained_on"] == 34
    assert inspect_folder(frame, config=Config(**SMALL)).pictures == 40
    assert probe_folder(rows, config=Config(**SMALL)).classes == 2


@pytest.mark.slow
def test_an_evaluation_leaves_identical_pictures_under_two_labels_out(
    run: Callable[..., Answer], make_folder: MakeFolder, tmp_path: Path
) -> None:
    finetune.fit(make_folder(classes={"blue": 12, "red": 12}), tmp_path / "run", **SMALL)
    new = make_folder("new", classes={"blue": 3, "red": 3}, seed=5)
    (new / "red" / "same.png").write_bytes((new / "blue" / "001.png").read_bytes())
    found = finetune.evaluate(tmp_path / "run", new)
    assert found["n"] == 5
    assert found["left_out"] == [
        {"path": "blue/001.png", "reason": "identical to red/same.png, which has the label 'red'"},
        {"path": "red/same.png", "reason": "identical to blue/001.png, which has the label 'blue'"},
    ]
    assert "left out: blue/001.png (identical to red/same.png" in run("evaluate", tmp_path / "run", new).out


def test_a_table_of_this_project_names_its_pictures_and_classes_again(tmp_path: Path) -> None:
    for name in ("=1.png", "'2.png"):
        (tmp_path / name).touch()
    write_csv(tmp_path / "table.csv", ("path", "label"), [("=1.png", "-dog"), ("'2.png", "cat")])
    samples = list_pictures(tmp_path / "table.csv").samples
    assert [(sample.path, sample.label) for sample in samples] == [("'2.png", "cat"), ("=1.png", "-dog")]
