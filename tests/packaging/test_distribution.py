"""The sdist and the wheel: what is in them, and what an installation of the wheel can do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from conftest import MakeFolder
from drawings import folder_of

from finetune.extras import MODULES

pytest.importorskip("hatchling", reason="hatchling is not installed: pip install --group dev")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WHEEL_BYTES, FILE_BYTES = 6_000_000, 3_500_000  # most, of the wheel and of a file in it
DATA = {
    "finetune/py.typed",
    "fewshot/py.typed",
    "finetune/models/weights/fewtune_conv4.safetensors",
    "fewshot/embedding/weights/omniglot/model.safetensors",
    "fewshot/embedding/weights/omniglot/config.json",
    "fewshot/omniglot/vinyals_split.json",
    "finetune/report/templates/report.html.j2",
    "finetune/report/templates/page.css",
    "fewshot/report/templates/omniglot.html.j2",
    "finetune/app/page/templates/page.js",
}
# A plain installation: packages of extras, which this environment has, cannot be found.
# scikit-learn looks at pyarrow where it is in sys.modules.
HIDDEN = sorted({module for modules in MODULES.values() for module in modules} - {"pyarrow"})
WITHOUT_EXTRAS = f"import sys\nsys.modules.update(dict.fromkeys({HIDDEN!r}))\n"
# The command ends its process, so it is run last.
ANSWER = """
import sys
from pathlib import Path
from finetune.__main__ import main
from finetune.entry.deferred_compiler import DeferredCompiler
DeferredCompiler.install()
import finetune, fewshot
from fewshot import Embedder, Recognizer
home = Path(sys.prefix).resolve()
assert all(home in Path(module.__file__).resolve().parents for module in (finetune, fewshot))
recognizer = Recognizer(Embedder.load("omniglot", device="cpu"))
for label in ("class00", "class01"):
    recognizer.enrol(label, f"{label}/00.png")
print([recognizer.recognize(f"{label}/01.png").label for label in ("class00", "class01")])
sys.argv = ["finetune", "predict", "run", "pictures/red/000.png"]
main()
"""


def python(place: Path, *words: object, at: Path) -> subprocess.CompletedProcess[str]:
    """Python of an environment, without what the environment of these tests says."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FEWTUNE"))}
    kept |= {"HF_HUB_OFFLINE": "1", "FEWTUNE_CACHE": str(at / "cache"), "OMP_NUM_THREADS": "1"}
    command = [str(place / "bin" / "python"), *map(str, words)]
    return subprocess.run(command, cwd=at, env=kept, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this tree, and the wheel that is built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(out), "-t"]
    subprocess.run([*build, "sdist"], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        archive.extractall(out, filter="data")
    (source,) = (path for path in out.iterdir() if path.is_dir())
    subprocess.run([*build, "wheel"], cwd=source, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel, in which the packages of this one are found, but for those of extras."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    install = [sys.executable, "-m", "pip", "--python", str(place), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--no-compile", str(wheel)], check=True, capture_output=True)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    (packages / "sitecustomize.py").write_text(WITHOUT_EXTRAS)
    return place


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def tracked() -> set[str]:
    """Files of both packages in this tree, without what Python and editors leave."""
    return {
        path.relative_to(ROOT).as_posix()
        for package in ("finetune", "fewshot")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_both_packages_their_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {each.filename: each.file_size for each in archive.infolist()}
    inside = {name for name in sizes if ".dist-info/" not in name}
    assert inside == tracked()
    assert inside >= DATA
    assert wheel.stat().st_size < WHEEL_BYTES
    assert max(sizes.values()) < FILE_BYTES


def test_the_sdist_holds_what_the_wheel_is_built_from_and_no_tests_or_benchmarks(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    beside = {"pyproject.toml", "hatch_build.py", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO"}
    assert inside - {".gitignore"} == tracked() | beside


def test_the_metadata_name_the_version_the_licence_and_the_extras(wheel: Path) -> None:
    found = metadata(wheel)
    version = found["Version"]
    assert (found["Name"], found["License-Expression"], found["Requires-Python"]) == ("fewtune", "MIT", ">=3.11")
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert set(found.get_all("Provides-Extra", [])) == {*MODULES, "all"}
    with zipfile.ZipFile(wheel) as archive:
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_the_description_has_no_link_or_picture_that_leads_nowhere(wheel: Path) -> None:
    found = metadata(wheel)
    text = str(found.get_payload())
    assert found["Description-Content-Type"] == "text/markdown"
    assert text.startswith("# fewtune\n")
    assert "pip install fewtune\n" in text
    assert "](" not in text.replace("](http", "")


def test_an_installation_names_its_version_and_runs_as_modules(installed: Path, wheel: Path, tmp_path: Path) -> None:
    program = python(installed, installed / "bin" / "finetune", "--version", at=tmp_path)
    assert program.stdout == f"finetune, version {metadata(wheel)['Version']}\n"
    for command in ("finetune", "fewshot"):
        bare = python(installed, "-m", command, at=tmp_path)
        assert (bare.returncode, bare.stderr) == (0, "")
        assert bare.stdout.startswith(f"Usage: {command} ")


def test_a_plain_installation_fits_predicts_and_recognises_from_one_example_of_each_class(
    installed: Path, make_folder: MakeFolder, tmp_path: Path
) -> None:
    pictures, finetune = make_folder(classes={"red": 8, "blue": 8}), installed / "bin" / "finetune"
    options = ["--out", "run", "--backbone", "fewtune_conv4", "--strategy", "head"]
    fitted = python(installed, finetune, "fit", pictures, *options, "--json", at=tmp_path)
    assert (fitted.returncode, fitted.stderr) == (0, "")
    assert json.loads(fitted.stdout)["strategy"] == "head", "JSON and nothing else"
    assert "pip install &#39;fewtune[explain]&#39;" in (tmp_path / "run" / "report.html").read_text() or (
        "Confidently wrong" not in (tmp_path / "run" / "report.html").read_text()
    )
    folder_of(tmp_path, classes=2, each=2, side=105)
    answer = python(installed, "-c", ANSWER, at=tmp_path)
    assert answer.returncode == 0, answer.stderr
    recognised, predicted = answer.stdout.splitlines()
    assert recognised == "['class00', 'class01']"
    assert predicted.startswith("pictures/red/000.png: red ")
    for words, extra in ((("explain", "run", pictures / "red", "--out", "maps"), "explain"), (("serve", "run"), "app")):
        refused = python(installed, finetune, *words, at=tmp_path)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.endswith(f" a package that is missing: pip install 'fewtune[{extra}]'\n")


def test_the_description_leads_to_the_source_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from hatch_build import NOTE, description

    readme = "# A\n\n![a chart](docs/a.png)\n\nsee [B](docs/b.md#c), [C](https://c.org), [D](#d)\n"
    assert description(readme) == f"# A\n\n*a chart*\n\nsee B, [C](https://c.org), [D](#d)\n\n{NOTE}\n"
    linked = description(readme, "https://example.org/a/")
    assert linked == ("# A\n\n*a chart*\n\nsee [B](https://example.org/a/docs/b.md#c), [C](https://c.org), [D](#d)\n")


def test_the_programs_of_the_installation_are_the_two_commands(installed: Path) -> None:
    assert {"finetune", "fewshot"} <= {path.name for path in (installed / "bin").iterdir()}
    assert shutil.which("finetune", path=str(installed / "bin"))
