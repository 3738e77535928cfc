"""Every data set has a card for people and a manifest for programs, and they agree."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from finetune.data.digits import write_digits

DATA = Path(__file__).parents[1] / "data"
NAMES = sorted(path.stem for path in DATA.glob("*.json"))
FIELDS = {
    "name": str,
    "title": str,
    "homepage": str,
    "licence": dict,
    "citation": str,
    "files": list,
    "folder": str | None,
    "layout": str,
    "classes": int,
    "pictures": int,
    "splits": dict,
}


def manifest(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def test_the_data_sets_are_those_the_toolkit_knows() -> None:
    assert NAMES == ["cats-dogs", "digits", "flowers", "omniglot", "steel-defects", "textures"]


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_has_every_field_and_no_other(name: str) -> None:
    value = manifest(name)
    assert value.keys() == FIELDS.keys()
    for field, kind in FIELDS.items():
        assert isinstance(value[field], kind), field
    assert value["name"] == name
    assert value["licence"].keys() == {"name", "note"}
    assert value["licence"]["note"]
    assert re.match("https?://", value["homepage"])


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_counts_every_picture_in_one_split(name: str) -> None:
    value = manifest(name)
    assert sum(value["splits"].values()) == value["pictures"] > value["classes"] > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_checksum_is_whole_or_its_absence_explained(name: str) -> None:
    for file in manifest(name)["files"]:
        assert file.keys() == {"name", "url", "checksum", "checksum_note"}
        assert file["checksum_note"]
        checksum = file["checksum"]
        assert checksum is None or re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", checksum)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_gives_the_size_the_licence_and_the_manifest(name: str) -> None:
    card = (DATA / f"{name}.md").read_text(encoding="utf-8")
    value = manifest(name)
    assert f"- **Size** {value['pictures']:,} pictures in {value['classes']:,} classes.\n" in card
    assert "- **Licence** " in card
    assert f"({name}.json)" in card
    assert value["homepage"] in card or name == "digits"


def test_the_list_agrees_with_the_manifests() -> None:
    text = (DATA / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(.+?)\]\((.+?)\) \| .+? \| ([\d,]+) \| ([\d,]+) \|", text, re.MULTILINE)
    listed = {name: (card, int(classes.replace(",", "")), int(n.replace(",", ""))) for name, card, classes, n in rows}
    assert listed == {name: (f"{name}.md", manifest(name)["classes"], manifest(name)["pictures"]) for name in NAMES}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("digits", "omniglot")])
def test_a_folder_holds_what_its_manifest_counts(name: str, real_data: Path) -> None:
    value = manifest(name)
    folder = real_data / value["folder"]
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    for split, pictures in value["splits"].items():
        found = list((folder if split == "all" else folder / split).glob("*/*.*"))
        assert len(found) == pictures
        assert len({path.parent.name for path in found}) == value["classes"]


def test_omniglot_holds_what_its_manifest_counts(real_data: Path) -> None:
    value = manifest("omniglot")
    for split, pictures in value["splits"].items():
        path = real_data / value["folder"] / f"images_{split}.zip"
        if not path.is_file():
            pytest.skip(f"{path} is not there")
        with zipfile.ZipFile(path) as archive:
            assert sum(name.endswith(".png") for name in archive.namelist()) == pictures


def test_the_manifest_of_the_digits_counts_what_is_written(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits")
    written = {split: len(list((tmp_path / "digits" / split).glob("*/*.png"))) for split in ("train", "val", "test")}
    assert written == manifest("digits")["splits"]
