"""Export of a classifier as one file for other programs, ONNX or torch.export, checked against the run.

The file maps pixels to probabilities and, in ONNX where the run stores what tells unknown pictures, unknown scores:
normalisation, network, temperature, likeness to the classes. With onnxruntime:

    about = json.load(open("pets.onnx.json"))["preprocessing"]
    side, border = (about["size"], about["size"]), (1 - about["crop_pct"]) / 2
    picture = ImageOps.exif_transpose(Image.open("new.jpg")).convert("RGB")
    pixels = np.asarray(ImageOps.fit(picture, side, Image.Resampling.BICUBIC, bleed=border)).transpose(2, 0, 1)[None]
    probabilities, score = onnxruntime.InferenceSession("pets.onnx").run(None, {"pixels": pixels})

or with OpenVINO, in its full precision: `openvino.compile_model("pets.onnx", "CPU",
{"INFERENCE_PRECISION_HINT": "f32"})(pixels)[0]`. Pillow resizes nearly as a run does; `finetune.load(run).pictures(
["new.jpg"]).batch([0]).pixels` are exactly its pixels.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from finetune.classifier.calibrated_network import averaged
from finetune.classifier.classifier import Classifier
from finetune.classifier.loading import load
from finetune.classifier.published.fetched import run_at
from finetune.classifier.run_config import RunConfig, read_run_config
from finetune.classifier.run_folder import PICTURES_FILE
from finetune.classifier.temperature import calibrated
from finetune.computing.openvino_module import openvino_core
from finetune.data.folder import list_unlabelled
from finetune.data.transforms import LONGEST
from finetune.errors import InputError
from finetune.extras import check_extra
from finetune.features.forward import run_over
from finetune.files.tables import read_csv
from finetune.files.writing import as_json, replacing
from finetune.hub.address import is_address, parse_address
from finetune.models.onnx_graph import onnx_program
from finetune.open_set.unknown_metrics import RATES
from finetune.open_set.unknown_model import UNKNOWN_FILE, UnknownModel
from finetune.options.suggestions import CHOICES, did_you_mean
from finetune.progress import Display
from finetune.terminal import reason_of

ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2"}

# ONNX operator set: the one that torch's exporter writes natively, and old enough for most programs.
OPSET = 18

# Largest allowed difference of a probability. Another order of float32 sums makes about 1e-6.
TOLERANCE = 1e-4
# The same of an unknown score, whose unit is a standard deviation.
SCORE_TOLERANCE = 1e-2

INPUT, OUTPUT, SCORE = "pixels", "probabilities", "unknown_score"

POLICY = (
    "turned upright as EXIF says; transparency on white; the first frame",
    "grey, palette and CMYK to RGB; grey of 16 bits scaled by its range, never clipped",
    f"of a picture over {LONGEST} times as long as wide, the middle alone",
    "the shorter side resized to shortest_side, the other to floor(length * shortest_side / shorter), antialiased",
    "the centre square of size x size; values 0 to 255, red, green, blue, channels first",
)


def export(
    run: str | Path,
    out: str | Path | None = None,
    *,
    format: str = "onnx",
    tolerance: float = TOLERANCE,
    pictures: str | Path | None = None,
    display: Display | None = None,
) -> dict[str, Any]:
    """Write the classifier of a run to one file, and a description of its input and its classes to `out`.json.

    The graph takes uint8 pixels of the evaluation view, shape (n, 3, size, size) for any n, or (n, 10, 3, size, size)
    with ten-crop views, and returns probabilities (n, classes). The file is kept only if it gives the same labels as
    the classifier in float32 on the CPU, and the same probabilities to within `tolerance`.

    Where the run stores what tells unknown pictures, a second output of the ONNX file has unknown scores (n,), those of
    `Prediction.unknown_score`, and the description lists thresholds under "unknown": for a rate of false accepts, a
    picture is of none of the classes where its score is above the threshold. The scores are compared too.

    torch.load may run code in a .pt2 file: load only your own. An ONNX file holds no code.

    Args:
        run: A run folder, which is not changed, or an address such as hf://user/name.
        out: File to write; by default beside the run, with its name; for an address, in the working folder. An older
            export there is replaced.
        format: "onnx", or "torch-export" for torch.export.load.
        tolerance: Largest allowed difference of a probability.
        pictures: Picture or folder of pictures to check the file on; by default the validation pictures of the run, or
            its training pictures where it has none of those.
        display: Shows progress.

    Returns:
        The content of the JSON file.

    Raises:
        InputError: If the pictures are gone, the file does not agree with the run, or the extra `export` is needed and
            is not installed; no file is then left.

    Example:
        >>> from finetune import export
        >>> export("runs/photos", "photos.onnx")["classes"]
        ['cat', 'dog']
    """
    given, display = run, display or Display()
    if format not in ENDINGS:
        meant = did_you_mean(str(format), ENDINGS, CHOICES)
        raise InputError(f"--format must be one of {', '.join(ENDINGS)}, not {format!r}{meant}")
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise InputError(f"--tolerance must be a number over 0, not {tolerance}")
    if format == "onnx":
        check_extra("export", "--format onnx")
    run = run_at(given, display)
    saved = read_run_config(run)
    if out is None and is_address(given):
        out = parse_address(given).name + ENDINGS[format]
    file = _place(run, None if out is None else Path(out), format)
    classifier = load(run, device="cpu", precision="float32")
    if format == "onnx" and (run / UNKNOWN_FILE).exists():
        classifier.require_unknown()
    sources = _validation_pictures(run, saved, str(given)) if pictures is None else list_unlabelled([Path(pictures)])

    about = _about(classifier, format)
    content = _exported(classifier, about)
    # The file first, then its description: a crash between them leaves none, never that of another file.
    with replacing(_beside(file)) as description, replacing(file) as temporary:
        temporary.write_bytes(content)
        about["parity"] = _parity(
            classifier, _ExportedModel(temporary.read_bytes(), format), sources, tolerance, display
        )
        description.write_text(as_json(about), encoding="utf-8", errors="backslashreplace")
        _beside(file).unlink(missing_ok=True)
    display.say(
        f"{file} agrees on {about['parity']['pictures']} pictures: every label, and probabilities to "
        f"{about['parity']['largest_difference']:.1e}"
    )
    return about


class Served(nn.Module):
    """A classifier as one graph: uint8 (n, 3, size, size) to probabilities (n, classes), and to unknown scores (n,)
    where the classifier has what tells unknown pictures."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self._classes = len(classifier.classes)
        self._scores = classifier.unknown is not None
        self.network = classifier.scored_network() if self._scores else classifier.network
        self._preprocessing = classifier.preprocessing
        self._temperature = classifier.temperature
        self._test_time = classifier.config.test_time

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        views = pixels if self._test_time == "ten-crop" else pixels.unsqueeze(1)
        if self._test_time == "flip":
            views = torch.cat([views, views.flip(-1)], dim=1)
        logits = self.network(self._preprocessing.normalize(views.flatten(0, 1)))
        by_view = logits.unflatten(0, (-1, views.shape[1]))
        probabilities = calibrated(averaged(by_view[..., : self._classes]), self._temperature).exp()
        return (probabilities, by_view[..., -1].mean(1)) if self._scores else probabilities


def _place(run: Path, out: Path | None, format: str) -> Path:
    run, ending = run.resolve(), ENDINGS[format]
    file = out if out is not None else run.with_name(run.name + ending)
    if file.suffix != ending:
        raise InputError(f"{file} (--out) must end in {ending} for --format {format}")
    if file.resolve().is_relative_to(run):
        raise InputError(f"{file} (--out) lies in the run, which an export does not change; choose another place")
    for path in (file, _beside(file)):
        if path.is_dir():
            raise InputError(f"{path} (--out) is a folder")
    return file


def _beside(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _validation_pictures(run: Path, saved: RunConfig, name: str) -> list[Path]:
    """The validation pictures of the run, or its training pictures where it has none of those. InputError, which calls
    the run `name` and names --pictures, where one is missing."""
    instead = "give --pictures FOLDER with pictures to check the export on"
    table = run / PICTURES_FILE
    if saved.folder is None or not table.exists():
        raise InputError(f"{name} does not name its validation pictures; {instead}")
    try:
        rows = read_csv(table, ("path", "split"))
    except InputError as error:
        raise InputError(f"{error}; {instead}") from error
    split = "val" if any(row["split"] == "val" for row in rows) else "train"
    paths = [Path(saved.folder) / row["path"] for row in rows if row["split"] == split]
    gone = [path for path in paths if not path.exists()]
    if gone or not paths:
        what = f"{gone[0]} is gone, and {len(gone) - 1} more" if gone else f"{table} names no picture"
        raise InputError(f"{what}; {instead}")
    return paths


def _about(classifier: Classifier, format: str) -> dict[str, Any]:
    preprocessing = classifier.preprocessing
    crops = [10] if classifier.config.test_time == "ten-crop" else []
    return {
        "format": format,
        **({"opset": OPSET} if format == "onnx" else {"torch": torch.__version__}),
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "shape": ["n", *crops, 3, preprocessing.size, preprocessing.size],
        },
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["n", len(classifier.classes)]},
        "classes": list(classifier.classes),
        **({} if classifier.unknown is None else {"unknown": _unknown(classifier.unknown)}),
        "preprocessing": {
            **asdict(preprocessing),
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "shortest_side": preprocessing.shortest_side,
        },
        "pictures": list(POLICY),
        "in_the_graph": ["division by 255", "mean and std", "network", "views averaged", "temperature", "softmax"],
        "views": classifier.config.test_time,
        "temperature": classifier.temperature,
        "backbone": classifier.config.backbone,
    }


def _unknown(model: UnknownModel) -> dict[str, Any]:
    """The output of unknown scores, and the thresholds for it."""
    rows = []
    for rate in RATES:
        found = model.expected(rate)
        row: dict[str, Any] = {"false_accept_rate": rate, "threshold": -found.threshold}
        row |= {"expected": found.accepted[0], "interval": list(found.accepted[1:])}
        rows.append(row | {"refused_of_the_classes": found.refused})
    return {
        "output": {"name": SCORE, "dtype": "float32", "shape": ["n"]},
        "rule": f"a picture is of none of the classes where {SCORE} is above the threshold",
        "thresholds": rows,
    }


def _exported(classifier: Classifier, about: dict[str, Any]) -> bytes:
    """The content of the file, with `about` in its metadata. InputError for a network that cannot be exported."""
    served = Served(classifier).eval()
    # Two pictures, because exporters take a size of 1 for a constant.
    pixels = torch.zeros(2, *about["input"]["shape"][1:], dtype=torch.uint8)
    # Escaped to ASCII, because a class name may not be valid UTF-8.
    facts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    make = _onnx if about["format"] == "onnx" else _pt2
    try:
        return make(served, pixels, facts)
    # Exporters raise arbitrary errors.
    except Exception as error:
        raise InputError(
            f"{classifier.config.backbone} cannot be exported as {about['format']} ({reason_of(error)})"
        ) from error


def _onnx(served: nn.Module, pixels: Tensor, facts: dict[str, str]) -> bytes:
    import onnx  # here, because it is slow to import

    names = (INPUT, OUTPUT, SCORE) if "unknown" in facts else (INPUT, OUTPUT)
    model = onnx_program(served, pixels, names=names, opset=OPSET).model_proto
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def _pt2(served: nn.Module, pixels: Tensor, facts: dict[str, str]) -> bytes:
    file = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter itself
        program = torch.export.export(served, (pixels,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
        program.example_inputs = None  # which would be pickled
        torch.export.save(program, file, extra_files={"about.json": json.dumps(facts)})
    return file.getvalue()


class _ExportedModel:
    """The exported file as a function: uint8 pixels to probabilities and, beside them, unknown scores where it gives
    these; from several threads at once."""

    def __init__(self, content: bytes, format: str):
        self._module: nn.Module | None = None
        if format == "torch-export":
            self._module = torch.export.load(io.BytesIO(content)).module()
            return
        core = openvino_core()  # slow to import
        compiled = core.compile_model(core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self._request, self._lock = compiled.create_infer_request(), Lock()

    def __call__(self, pixels: Tensor) -> Tensor:
        if self._module is not None:
            with torch.no_grad():
                outputs = self._module(pixels)
            return _side_by_side([outputs] if isinstance(outputs, Tensor) else outputs)
        with self._lock:  # a request computes one batch at a time, on all cores
            found = self._request.infer([pixels.contiguous().numpy()])
            return _side_by_side([torch.tensor(found[number]) for number in range(len(found))])


def _side_by_side(outputs: Sequence[Tensor]) -> Tensor:
    """Outputs (n, classes) and (n,) in one table."""
    return torch.cat([output.flatten(1) if output.ndim > 1 else output[:, None] for output in outputs], 1)


def _parity(
    classifier: Classifier,
    exported: _ExportedModel,
    sources: Sequence[Path],
    tolerance: float,
    display: Display,
) -> dict[str, Any]:
    """Compare the exported file with the classifier on `sources`. InputError where they do not agree."""
    scores: Tensor | None = None
    if classifier.unknown is None:
        log_probabilities, index, contents = classifier.log_probabilities(sources, display=display)
    else:
        log_probabilities, scores, index, contents = classifier.scored(sources, display=display)
    if not len(index):
        raise InputError(f"{sources[0]}: {contents[0].reason}; give --pictures FOLDER with pictures that can be read")
    wanted = log_probabilities.exp()
    with display.bar("checking the export", len(sources)) as advance:
        seen = run_over(torch.device("cpu"), exported, classifier.pictures(sources), advance=advance)
    if not torch.equal(seen.index, index):
        raise InputError(f"{sources[0].parent}: pictures changed while the export was checked; start again")
    given = seen.values[:, : wanted.shape[1]]
    # NaN counts as a difference.
    differences = (given - wanted).abs().amax(1).nan_to_num(nan=math.inf)
    others = (given.argmax(1) != wanted.argmax(1)).sum()
    if others or differences.max() > tolerance:
        worst = sources[int(index[differences.argmax()])]
        raise InputError(
            f"the export does not agree with the run: of {len(index)} pictures {int(others)} get another label, and a "
            f"probability differs by {float(differences.max()):.2g} for {worst} (--tolerance {tolerance:g})"
        )
    found: dict[str, Any] = {
        "pictures": len(index),
        "labels_equal": True,
        "largest_difference": float(differences.max()),
        "tolerance": tolerance,
    }
    if scores is None:
        return found
    apart = (seen.values[:, -1] - scores).abs().nan_to_num(nan=math.inf)
    if apart.max() > SCORE_TOLERANCE:
        worst = sources[int(index[apart.argmax()])]
        raise InputError(
            f"the export does not agree with the run: an unknown score differs by {float(apart.max()):.2g} for {worst}"
        )
    return found | {"largest_score_difference": float(apart.max()), "score_tolerance": SCORE_TOLERANCE}
