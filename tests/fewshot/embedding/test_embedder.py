from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawings import character, folder_of, small
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from fewshot.embedding.embedder import Embedder
from fewshot.embedding.encoder import EncoderSpec, create, read_square, round_to_half
from fewshot.embedding.encoder_files import fingerprint_of
from fewshot.omniglot.dataset import Character
from fewshot.training.train import train_folder
from finetune.config import MAX_PIXELS
from finetune.data.loader import Pictures
from finetune.data.transforms import Preprocessing, evaluation_view
from finetune.errors import InputError, UnreadablePicture
from finetune.features.acceleration import TOLERANCE
from finetune.progress import Display


def untrained(framing: str = "drawing", side: int = 32, **options: object) -> Embedder:
    torch.manual_seed(0)
    spec = EncoderSpec("fewtune_drawing" if framing == "drawing" else "fewtune_conv4", side, framing)  # type: ignore[arg-type]
    network = create(spec)
    round_to_half(network)
    return Embedder(network, spec, device="cpu", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Embedder]:
    """A run and what its training returned."""
    place = tmp_path_factory.mktemp("embedder")
    folder = folder_of(place / "pictures", classes=3, each=3)
    return place / "run", train_folder(folder, place / "run", config=small(alphabets=1, ways=2, epochs=3))


@pytest.fixture
def run(trained: tuple[Path, Embedder], tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return shutil.copytree(trained[0], tmp_path / "copy")


def paper(count: int = 4) -> list[NDArray[np.uint8]]:
    """Dark ink on white."""
    return [255 - character(number) for number in range(count)]


def close(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of each row with that of the other."""
    return np.asarray((one * other).sum(1))


# --- saved and loaded -------------------------------------------------------------------------------------------------


def test_a_saved_run_loads_as_the_embedder_that_training_returned(trained: tuple[Path, Embedder]) -> None:
    run, returned = trained
    loaded = Embedder.load(run, device="cpu")
    assert loaded.fingerprint == returned.fingerprint
    assert loaded.spec == returned.spec
    assert np.array_equal(loaded.embed(paper()), returned.embed(paper()))


def test_saving_and_loading_keeps_every_bit(tmp_path: Path) -> None:
    embedder = untrained(trained_on=[Character("Latin", 3), Character("Greek", 1), Character("Latin", 1)])
    embedder.save(tmp_path, recipe={}, note="mine")
    loaded = Embedder.load(str(tmp_path), device="cpu")
    assert loaded.fingerprint == embedder.fingerprint
    assert loaded.trained_on == embedder.trained_on
    assert np.array_equal(loaded.embed(paper()), embedder.embed(paper()))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["trained_on"] == {"Greek": [1], "Latin": [1, 3]}
    assert config["note"] == "mine"


def test_the_fingerprint_depends_on_weights_and_preprocessing() -> None:
    embedder, same, smaller, other = untrained(), untrained(), untrained(side=16), untrained()
    with torch.no_grad():
        next(other.network.parameters())[0] += 1
    assert embedder.fingerprint == same.fingerprint
    assert len({embedder.fingerprint, smaller.fingerprint, other.fingerprint}) == 3


@pytest.mark.slow
def test_no_use_of_an_embedder_changes_its_weights(tmp_path: Path) -> None:
    embedder = untrained(views=2)
    before = embedder.network_fingerprint
    embedder.embed([np.full((40, 30), shade, np.uint8) for shade in range(200)], batch_size=32)
    embedder.embed_drawings(torch.zeros(3, 105, 105, dtype=torch.uint8))
    embedder.save(tmp_path)
    assert fingerprint_of(embedder.network, embedder.spec) == before == untrained().fingerprint != embedder.fingerprint


@pytest.mark.slow
def test_importing_the_encoder_module_registers_all_networks() -> None:
    script = (
        "from fewshot.embedding.encoder import EncoderSpec, create\n"
        "for name in ('fewtune_conv4', 'fewtune_drawing'): create(EncoderSpec(name, 16, 'whole'))"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


# --- vectors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["drawing", "whole"])
def test_vectors_have_unit_length_and_keep_the_order(framing: str) -> None:
    embedder = untrained(framing)
    vectors = embedder.embed(paper(5))
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, embedder.width)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embedder.embed(paper(5)[::-1])[::-1], vectors, atol=1e-5)
    for one, picture in zip(vectors, paper(5), strict=True):
        np.testing.assert_allclose(embedder.embed([picture])[0], one, atol=1e-5)
    assert len(np.unique(vectors.round(3), axis=0)) == 5


def test_more_pictures_than_a_batch_are_all_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = untrained()
    whole = embedder.embed(paper(7))
    np.testing.assert_allclose(embedder.embed(paper(7), batch_size=3, workers=2), whole, atol=1e-5)
    drawings = torch.from_numpy(255 - np.stack(paper(7)))
    monkeypatch.setattr("fewshot.embedding.embedder._DRAWINGS_AT_ONCE", 3)
    np.testing.assert_allclose(embedder.embed_drawings(drawings).numpy(), whole, atol=1e-5)


def test_no_pictures_have_no_vectors() -> None:
    embedder = untrained()
    assert embedder.embed([]).shape == (0, embedder.width) == (0, 256)
    assert embedder.embed([]).dtype == np.float32


@pytest.mark.parametrize("framing", ["drawing", "whole"])
def test_path_bytes_array_and_image_of_a_picture_have_one_vector(framing: str, tmp_path: Path) -> None:
    embedder, path, pixels = untrained(framing), tmp_path / "one.png", paper(1)[0]
    Image.fromarray(pixels).save(path)
    one, *others = embedder.embed([path, str(path), path.read_bytes(), pixels, Image.open(path)])
    for other in others:
        np.testing.assert_allclose(other, one, atol=1e-6)


def test_ink_may_be_dark_on_light_or_light_on_dark() -> None:
    embedder = untrained()
    dark, light = embedder.embed(paper(6)), embedder.embed([255 - picture for picture in paper(6)])
    assert close(dark, light).min() > 0.9999
    # Grey paper and pale ink as well.
    pale = embedder.embed([(picture // 3 + 120).astype(np.uint8) for picture in paper(6)])
    assert close(dark, pale).min() > 0.999


def test_pictures_of_a_drawing_are_embedded_as_the_drawing() -> None:
    embedder = untrained()
    drawn = torch.from_numpy(np.stack([character(number) for number in range(6)]))
    vectors = embedder.embed_drawings(drawn).cpu().numpy()
    assert close(embedder.embed(paper(6)), vectors).min() > 0.9999
    larger = [picture.repeat(3, 0).repeat(3, 1) for picture in paper(6)]
    assert close(embedder.embed(larger), vectors).min() > 0.999
    whole = untrained("whole")
    assert close(whole.embed(paper(6)), whole.embed_drawings(drawn).cpu().numpy()).min() > 0.99


def test_the_position_of_a_drawing_on_its_page_hardly_matters() -> None:
    embedder = untrained()
    sheet = np.full((210, 210), 255, np.uint8)
    moved = []
    for picture in paper(6):
        moved.append(sheet.copy())
        moved[-1][90:195, 10:115] = picture
    centred = [np.pad(picture, ((52, 53), (52, 53)), constant_values=255) for picture in paper(6)]
    vectors = embedder.embed(centred)
    own, others = close(embedder.embed(moved), vectors), close(vectors[1:], vectors[:-1])
    assert own.min() > 0.95
    assert (1 - own).mean() < 0.5 * (1 - others).mean()


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (1, 500), (500, 1), (1, 1)])
def test_pictures_of_any_shape_have_vectors(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for framing in ("drawing", "whole"):
        assert np.isfinite(untrained(framing).embed([pixels])).all()


def test_blank_pictures_have_finite_vectors() -> None:
    for value in (0, 128, 255):
        assert np.isfinite(untrained().embed([np.full((50, 50), value, np.uint8)])).all()


@pytest.mark.parametrize("side", [64, 224])
def test_a_large_jpeg_is_decoded_as_sharply_as_its_pixels(side: int, tmp_path: Path) -> None:
    """A JPEG may be decoded at a reduced scale, but not below the network's input."""
    fine = np.random.default_rng(0).integers(0, 256, (440, 440, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
    Image.fromarray(fine).save(tmp_path / "fine.jpg", quality=95)
    with Image.open(tmp_path / "fine.jpg") as image:
        pixels = np.asarray(image)
    by_path, by_pixels = (read_square(given, side).float() for given in (tmp_path / "fine.jpg", pixels))
    assert float((by_path - by_pixels).abs().mean()) < 8


def test_more_views_change_the_vectors_slightly(trained: tuple[Path, Embedder]) -> None:
    run, one = trained
    three = Embedder.load(run, views=3, device="cpu")
    vectors = three.embed(paper(6))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert not np.allclose(vectors, one.embed(paper(6)), atol=1e-3)
    assert close(vectors, one.embed(paper(6))).min() > 0.7
    assert np.array_equal(vectors, three.embed(paper(6)))


# --- inputs -----------------------------------------------------------------------------------------------------------


def cropping(**options: object) -> Embedder:
    """An untrained encoder of colour pictures, like timm's models."""
    torch.manual_seed(0)
    preprocessing = Preprocessing(35, 0.875, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    spec = EncoderSpec("fewtune_conv4", 35, "crop", preprocessing)
    return Embedder(create(spec), spec, device="cpu", **options)  # type: ignore[arg-type]


def coloured(count: int) -> NDArray[np.uint8]:
    """Different pictures (count, 40, 48, 3) of coarse squares."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 5, 6, 3), dtype=np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)


def test_tensors_are_pictures_with_their_channels_first() -> None:
    embedder, pixels = cropping(), coloured(3)
    wanted = embedder.embed(list(pixels))
    tensors = torch.from_numpy(pixels).movedim(-1, 1)
    for given in (pixels, tensors, list(tensors), tensors.float() / 255, list(tensors.double() / 255)):
        np.testing.assert_array_equal(embedder.embed(given), wanted)
    for halves in (torch.float16, torch.bfloat16):
        assert close(embedder.embed((tensors / 255).to(halves)), wanted).min() > 0.999
    learning = (tensors.float() / 255).requires_grad_()
    np.testing.assert_array_equal(embedder.embed(learning), wanted)


def test_grey_tensors_have_one_channel_or_none() -> None:
    embedder, grey = cropping(), torch.from_numpy(coloured(2)[..., 0])
    wanted = embedder.embed([page.numpy() for page in grey])
    np.testing.assert_array_equal(embedder.embed(list(grey)), wanted)
    np.testing.assert_array_equal(embedder.embed(grey[:, None]), wanted)


@pytest.mark.parametrize("shape", [(40, 48, 3), (3, 40, 48), (40, 48), (2, 2, 3, 40, 48)])
def test_an_ambiguous_array_shape_is_refused(shape: tuple[int, ...]) -> None:
    for given in (np.zeros(shape, np.uint8), torch.zeros(shape, dtype=torch.uint8)):
        with pytest.raises(
            InputError, match=r"may mean one picture or several: give a list .* or a tensor \(n, 3, h, w"
        ):
            cropping().embed(given)


def saved(folder: Path, pixels: NDArray[np.uint8]) -> list[Path]:
    """Pictures as files, every third below another folder."""
    paths = [folder / ("b" if number % 3 else "a") / f"{number:03d}.png" for number in range(len(pixels))]
    for path, picture in zip(paths, pixels, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return paths


def test_a_folder_is_embedded_in_the_order_of_its_paths(tmp_path: Path) -> None:
    embedder = cropping()
    paths = saved(tmp_path / "pictures", coloured(7))
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    wanted = embedder.embed(sorted(paths))
    np.testing.assert_array_equal(embedder.embed(tmp_path / "pictures"), wanted)
    np.testing.assert_array_equal(embedder.embed(str(tmp_path / "pictures")), wanted)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no pictures"):
        embedder.embed(tmp_path / "empty")


def test_unreadable_pictures_are_listed_by_position_and_shift_no_others(tmp_path: Path) -> None:
    """Several batches, one of them without a readable picture."""
    embedder, pixels = cropping(), coloured(60)
    paths = saved(tmp_path, pixels)
    wanted = embedder.embed(list(pixels))
    broken = {0, 17, *range(32, 48), 59}
    for number in broken - {17}:
        paths[number].write_bytes(paths[number].read_bytes()[:60])
    paths[17].unlink()
    for workers in (1, 2, 5):
        found = embedder.embed_all(paths, workers=workers)
        assert set(found.unreadable) == broken
        assert found.unreadable[17] == "no such file"
        whole = [number for number in range(60) if number not in broken]
        np.testing.assert_allclose(found.vectors[whole], wanted[whole], atol=1e-6)
        assert np.isnan(found.vectors[sorted(broken)]).all()
        contents = [path.read_bytes() if path.exists() else None for path in paths]
        digests = ["" if content is None else hashlib.sha256(content).hexdigest() for content in contents]
        assert list(found.sha256) == digests
    with pytest.raises(UnreadablePicture, match=r"picture 0 \(.*000\.png\): cut short; nor can 17, 32, 33, 34, 35 and"):
        embedder.embed(paths)


def test_vectors_are_nan_if_no_picture_can_be_read(tmp_path: Path) -> None:
    embedder = cropping()
    found = embedder.embed_all([tmp_path / "absent.png", b"", b"junk"])
    assert found.vectors.shape == (3, embedder.width)
    assert np.isnan(found.vectors).all()
    assert found.unreadable == {0: "no such file", 1: "empty file", 2: "not a picture"}
    assert embedder.embed_all([]).sha256 == ()


def test_workers_and_batch_size_do_not_change_vectors() -> None:
    embedder, pixels = cropping(), list(coloured(21))
    wanted = embedder.embed(pixels)
    for batch_size, workers in ((1, 2), (4, 1), (5, 3), (64, 2)):
        found = embedder.embed(pixels, batch_size=batch_size, workers=workers)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    with pytest.raises(InputError, match="--batch-size must be at least 1, not 0"):
        embedder.embed(pixels, batch_size=0)


# --- faster than the network is ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, 3])
def test_large_collections_are_embedded_faster_within_the_tolerance(
    views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.features.acceleration.WORTH_CONVERTING", 30)
    fast, exact = (untrained(views=views, tolerance=tolerance) for tolerance in (TOLERANCE, 1))
    wanted = exact.embed(paper(40))
    few = fast.embed(paper(29), batch_size=8)
    np.testing.assert_allclose(few, wanted[:29], atol=1e-6)
    pictures: list[Any] = [b"junk", *paper(40), b""]
    found = fast.embed_all(pictures, batch_size=8)
    assert set(found.unreadable) == {0, 41}
    assert close(found.vectors[1:41], wanted).min() >= TOLERANCE
    assert not np.array_equal(found.vectors[1:41], wanted), "it was converted"
    # Once converted, it stays so for whole batches.
    np.testing.assert_array_equal(fast.embed(paper(5), batch_size=8), found.vectors[1:6])


def test_a_tolerance_of_one_is_plain_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.features.acceleration.WORTH_CONVERTING", 1)
    embedder, pixels = cropping(tolerance=1), coloured(16)
    assert embedder.spec.preprocessing is not None
    pictures = Pictures(list(pixels), evaluation_view(embedder.spec.preprocessing), 40, MAX_PIXELS)
    with torch.no_grad(), one_thread():
        batch = embedder.spec.preprocessing.normalize(pictures.batch(range(16)).pixels)
        wanted = F.normalize(F.normalize(embedder.network(batch), dim=1), dim=1)
    np.testing.assert_array_equal(embedder.embed(pixels), wanted.numpy())


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("tolerance", [0, -1, 1.01, float("nan")])
def test_a_tolerance_outside_0_to_1_is_refused(tolerance: float) -> None:
    with pytest.raises(InputError, match="tolerance is a cosine, above 0 and at most 1, not"):
        untrained(tolerance=tolerance)


def test_a_given_display_shows_how_many_pictures_are_done() -> None:
    shown = io.StringIO()
    untrained().embed(paper(5), batch_size=2, display=Display(Console(file=shown)))
    assert shown.getvalue().startswith("embedding: 5 pictures in ")


def test_a_failed_conversion_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.features.acceleration.WORTH_CONVERTING", 4)

    def inconvertible(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("an operator of its own\nand more lines")

    monkeypatch.setattr("finetune.features.acceleration.openvino_model", inconvertible)
    embedder, shown = untrained(), io.StringIO()
    for _ in range(2):
        np.testing.assert_array_equal(
            embedder.embed(paper(5), display=Display(Console(file=shown))), untrained(tolerance=1).embed(paper(5))
        )
    assert shown.getvalue().count("it cannot be converted (an operator of its own)") == 1


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_single_path_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(InputError, match="embed takes a folder or a list of pictures, not one str"):
        untrained().embed("a.png")


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UnreadablePicture, match=r"picture 1 \(.*text\.png\): not a picture"):
        untrained().embed([paper(1)[0], tmp_path / "text.png"])


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Embedder.load(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_folders_without_an_encoder_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "missing is no encoder: give omniglot, the folder of a run")
    refused(tmp_path, "is no encoder")
    (tmp_path / "config.json").write_text('{"format": 1}')
    refused(tmp_path, "not of a run")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "not valid JSON")


def test_a_damaged_weights_file_is_named(run: Path) -> None:
    weights = run / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:100], b"junk" * 100):
        weights.write_bytes(damaged)
        refused(run, "model.safetensors")
    weights.unlink()
    refused(run, "has not finished")


def change(run: Path, **entries: object) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | entries))


def test_weights_of_another_network_are_refused(run: Path) -> None:
    for network, message in (("fewtune_drawing", "does not fit fewtune_drawing"), ("resnot", "knows no network")):
        change(run, spec={"network": network, "side": 16, "framing": "whole"})
        refused(run, message)
    change(run, spec={"network": "fewtune_conv4", "side": 16, "framing": "drawing"})
    refused(run, "does not fit fewtune_conv4")


@pytest.mark.parametrize("entries", [{"format": 2}, {"spec": {"network": "fewtune_conv4"}}, {"trained_on": None}])
def test_a_configuration_that_is_not_of_this_version_is_refused(entries: dict[str, object], run: Path) -> None:
    change(run, **entries)
    refused(run, "config.json")


def test_an_unfinished_run_is_refused(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    del config["spec"]
    (run / "config.json").write_text(json.dumps(config))
    refused(run, "has not finished; continue it with --resume")
