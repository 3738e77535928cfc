"""What an installation takes: megabytes, packages and seconds, of the package alone and of each extra beside it.

    python benchmarks/install_size.py [--before COMMIT] [--extras explain search] [--scratch FOLDER]

The wheel is built from this tree, or from COMMIT for "before", and installed by pip into a new environment. An extra
is installed into an environment that sees the packages of the plain one, so its figures are what it adds. Seconds hold
the downloads, without pip's cache. Then the two commands of the README run in the plain environment on drawn pictures,
with the network that ships, since no weights are downloaded here.
Results in benchmarks/results/install_size.json, row by row: rows that are there are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from machine import provenance
from PIL import Image, ImageDraw

from finetune.files.reading import read_json
from finetune.files.writing import write_json

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).parent / "results" / "install_size.json"
SHOWN_FROM = 5  # megabytes of a package that a row names
_SIZES = """
import importlib.metadata, json, os, sys
home = os.path.join(sys.prefix, "")
sizes = {}
for found in importlib.metadata.distributions():
    files = [str(found.locate_file(name)) for name in found.files or []]
    if any(os.path.realpath(name).startswith(os.path.realpath(home)) for name in files[:1]):
        name = found.metadata["Name"].lower().replace("_", "-")
        sizes[name] = sum(map(os.path.getsize, filter(os.path.exists, files)))
print(json.dumps(sizes))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="COMMIT", help="also measure the package alone as it was there")
    parser.add_argument("--extras", nargs="*", help="those to measure; by default all")
    parser.add_argument("--scratch", type=Path, help="folder for the environments, which are left there")
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    rows: dict[str, Any] = read_json(args.result)["rows"] if args.result.exists() else {}

    def done(name: str, row: dict[str, Any]) -> None:
        rows[name] = row
        print(name, f"{row['megabytes']:,} MB in {row['seconds']} s", flush=True)
        write_json(args.result, {"rows": rows, **provenance()})

    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.scratch or Path(temporary)
        if args.before and "before" not in rows:
            done("before", installed(scratch / "before", wheel_of(args.before, scratch), ""))
        given = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        wanted = list(given) if args.extras is None else args.extras
        missing = [name for name in ["plain", *wanted] if name not in rows]
        if not missing:
            return
        wheel = wheel_of(None, scratch)
        plain = scratch / "plain"
        if not (plain / "bin").exists():
            row = installed(plain, wheel, "")
            done("plain", row)
            done("plain", row | first_prediction(plain, scratch / "pictures"))
        for extra in missing:
            if extra != "plain":
                done(extra, installed(scratch / extra, wheel, f"[{extra}]", beside=plain))


def wheel_of(commit: str | None, scratch: Path) -> Path:
    """The wheel of this tree, or of a commit."""
    source, out = ROOT, scratch / "wheels" / (commit or "now")
    if commit is not None:
        source = scratch / "source"
        source.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(source)], check=True)
    return next(out.glob("*.whl"))


def installed(place: Path, wheel: Path, extra: str, beside: Path | None = None) -> dict[str, Any]:
    """Install into a new environment: what pip adds. beside: An environment whose packages it sees."""
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python = place / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True, env=environment())
    if beside is not None:
        (packages,) = place.glob("lib/python*/site-packages")
        (others,) = beside.glob("lib/python*/site-packages")
        (packages / "beside.pth").write_text(f"{others}\n")
    before = sizes(python)
    started = time.perf_counter()
    subprocess.run([*pip, "--no-cache-dir", f"{wheel}{extra}"], check=True, env=environment())
    seconds = time.perf_counter() - started
    added = {name: size for name, size in sizes(python).items() if name not in before}
    large = sorted(added.items(), key=lambda each: -each[1])
    return {
        "megabytes": round(sum(added.values()) / 1e6),
        "packages": len(added),
        "seconds": round(seconds),
        "largest": {name: round(size / 1e6) for name, size in large if size >= SHOWN_FROM * 1e6},
    }


def environment() -> dict[str, str]:
    """The variables of this process without those that show Python other packages."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def sizes(python: Path) -> dict[str, int]:
    """Bytes of the installed files of every package of an environment."""
    found: dict[str, int] = json.loads(
        subprocess.check_output([str(python), "-c", _SIZES], text=True, env=environment())
    )
    return found


def first_prediction(place: Path, pictures: Path) -> dict[str, float]:
    """Seconds of the README's two commands on drawn pictures."""
    draw_pictures(pictures)
    run, new = pictures.with_name("run"), next((pictures / "disc").iterdir())
    program, seconds = place / "bin" / "finetune", {}
    fit = ["fit", str(pictures), "--out", str(run), "--overwrite", "--backbone", "fewtune_conv4"]
    for name, command in (("fit", fit), ("predict", ["predict", str(run), str(new)])):
        started = time.perf_counter()
        kept = environment() | {"FEWTUNE_CACHE": str(pictures.with_name("cache"))}
        done = subprocess.run([str(program), *command], env=kept, capture_output=True, text=True, check=False)
        seconds[f"{name}_seconds"] = round(time.perf_counter() - started, 1)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return seconds


def rows_shown(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table: what each installation adds."""
    called = {"before": "0.1.0, which had no extras for these", "plain": "`fewtune` alone"}
    rows = []
    for name, row in result["rows"].items():
        extra = name not in called
        largest = ", ".join(f"{package} {size:,}" for package, size in list(row["largest"].items())[:4])
        words = [f"`{name}`" if extra else called[name], ("+ " if extra else "") + f"{row['megabytes']:,}"]
        rows.append([*words, f"{row['packages']:,}", f"{row['seconds']:,}", largest])
    return ["installed", "MB", "packages", "seconds, with the downloads", "largest, in MB"], rows


def draw_pictures(folder: Path, each: int = 20) -> None:
    """Discs and squares in random colours, so many of each."""
    chance = random.Random(0)
    for shape in ("disc", "square"):
        (folder / shape).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            picture = Image.new("RGB", (96, 96), tuple(chance.randrange(256) for _ in range(3)))
            x, y, side = chance.randrange(40), chance.randrange(40), chance.randrange(24, 50)
            pen, colour = ImageDraw.Draw(picture), tuple(chance.randrange(256) for _ in range(3))
            (pen.ellipse if shape == "disc" else pen.rectangle)((x, y, x + side, y + side), fill=colour)
            picture.save(folder / shape / f"{number}.png")


if __name__ == "__main__":
    main()
