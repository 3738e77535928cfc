from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeFolder
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy.fft import dctn
from sklearn.datasets import load_digits
from told import NothingSaid

from finetune.config import Config
from finetune.data.folder import list_unlabelled
from finetune.data.images import read_image
from finetune.data.loader import Pictures
from finetune.data.near_duplicates import FINGERPRINT_BYTES, PHASH_BITS, connected, fingerprint, near_hashes, near_pairs
from finetune.data.transforms import Normalized, evaluation_view
from finetune.features.acceleration import Examples
from finetune.features.cache import ActivationCache
from finetune.features.cache_keys import FeatureKey, fingerprint_key
from finetune.features.extraction import FeatureExtractor, Features
from finetune.models.backbone import Backbone
from finetune.models.device import open_engine
from finetune.progress import Display

SCENES = 12


def scene(number: int, width: int = 320, height: int = 240) -> Image.Image:
    """Coloured blobs of several sizes, as a photograph has them."""
    random = np.random.default_rng(number)
    whole = np.zeros((height, width, 3))
    for side, weight in ((3, 60), (8, 40), (24, 25)):
        blobs = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
        whole += weight / 128 * (np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC)) - 128.0)
    return Image.fromarray(np.clip(whole + 128, 0, 255).astype(np.uint8))


def jpeg(picture: Image.Image, quality: int = 85) -> Image.Image:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality)
    return read_image(content.getvalue(), at_least=100)


def cut(picture: Image.Image, share: float) -> Image.Image:
    left, top = round(picture.width * share), round(picture.height * share)
    return picture.crop((left, top, picture.width - left, picture.height - top))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda picture: jpeg(picture, 30), id="low quality"),
        pytest.param(lambda picture: jpeg(picture.resize((160, 120))), id="half the size"),
        pytest.param(lambda picture: jpeg(picture.resize((800, 600))), id="larger"),
        pytest.param(lambda picture: jpeg(ImageEnhance.Brightness(picture).enhance(1.1)), id="brighter"),
        pytest.param(lambda picture: jpeg(ImageEnhance.Contrast(picture).enhance(0.8)), id="paler"),
        pytest.param(lambda picture: jpeg(cut(picture, 0.01)), id="rim cut away"),
    ],
)
def test_a_changed_copy_is_found_and_nothing_else(change) -> None:  # type: ignore[no-untyped-def]
    pictures = [scene(number) for number in range(SCENES)]
    found = near_pairs([fingerprint(picture) for picture in (*pictures, *map(change, pictures))])
    assert found == [(number, SCENES + number) for number in range(SCENES)]


def pairs_of(*pictures: Image.Image) -> list[tuple[int, int]]:
    return near_pairs([fingerprint(picture) for picture in pictures])


def test_pictures_without_texture_are_no_near_duplicates() -> None:
    one = scene(1)
    red, green, blue = one.split()
    assert pairs_of(one, Image.merge("RGB", (blue, green, ImageEnhance.Brightness(red).enhance(0.3)))) == []
    flat = [Image.new("RGB", (50, 40), (grey, grey, grey)) for grey in (100, 101, 101)]
    assert pairs_of(*flat) == []


def test_stripes_are_never_taken_for_near_duplicates() -> None:
    def stripes(seed: int) -> Image.Image:
        row = np.repeat(np.random.default_rng(seed).integers(0, 256, 20), 16).astype(np.uint8)
        return Image.fromarray(np.broadcast_to(row, (240, 320))).convert("RGB")

    pictures = [stripes(seed) for seed in range(30)]
    assert pairs_of(*pictures, *(picture.transpose(Image.Transpose.TRANSPOSE) for picture in pictures)) == []


def test_few_different_digits_look_alike() -> None:
    digits = load_digits()
    scans = [Image.fromarray((255 - scan * 15.9).astype(np.uint8)) for scan in digits.images[:1000]]
    pairs = pairs_of(*(scan.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB") for scan in scans))
    assert len(pairs) < 5
    assert all(digits.target[one] == digits.target[other] for one, other in pairs)


def test_a_fingerprint_is_relief_colour_and_three_hashes_of_32_by_32_pixels() -> None:
    picture = scene(3, 80, 64)
    grey = picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    values = np.asarray(grey, np.float64)
    relief = values - values.mean(0) - values.mean(1)[:, None] + values.mean()
    found = fingerprint(picture)
    assert found[0] == round(relief.std())
    assert np.abs(np.frombuffer(found[1:4], np.uint8) - np.asarray(picture, np.float64).mean((0, 1))).max() <= 1
    low = dctn(values)[:16, :16]
    assert bits_of(found[4:36]) == pytest.approx(low > np.median(low))
    for part, size, axis in ((found[36:68], (17, 16), 1), (found[68:], (16, 17), 0)):
        small = np.asarray(grey.resize(size, Image.Resampling.LANCZOS), np.int16)
        assert bits_of(part) == pytest.approx(np.diff(small, axis=axis) > 0)


def bits_of(part: bytes) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(part, np.uint8)).reshape(16, 16).astype(bool)


@pytest.mark.parametrize("times", [2, 3, 5])
def test_whole_pixels_that_are_repeated_change_no_fingerprint(times: int) -> None:
    picture = scene(3, 80, 64)
    larger = picture.resize((80 * times, 64 * times), Image.Resampling.NEAREST)
    assert fingerprint(larger) == fingerprint(picture)


def test_the_strongest_relief_has_a_fingerprint() -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    checks = Image.fromarray(board.astype(np.uint8).repeat(2, 0).repeat(2, 1)).resize((32, 32), Image.Resampling.BOX)
    coarse = Image.fromarray((np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    assert fingerprint(coarse)[0] == 128
    assert fingerprint(checks.convert("RGB"))[0] == 0


def test_any_picture_has_a_fingerprint() -> None:
    for size in ((1, 1), (1, 500), (700, 3), (33, 65)):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
        assert len(fingerprint(picture)) == FINGERPRINT_BYTES
    assert near_pairs([]) == []
    assert pairs_of(scene(0)) == []


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 6), st.integers(0, 60), st.integers(0, 9)),
        max_size=30,
    )
)
def test_pairs_are_those_of_all_that_are_compared_one_by_one(drawn: list[tuple[int, int, int, int, int]]) -> None:
    def made(scene: int, frequencies: int, gradients: int, colour: int, contrast: int) -> bytes:
        found = np.random.default_rng(scene).integers(0, 256, FINGERPRINT_BYTES, dtype=np.uint8)
        found[0], found[1], found[2], found[3] = contrast, 100, 100 + colour, 100
        found[4 + 30 - frequencies : 4 + 30] ^= 255  # partly in the half that is compared first, and partly not
        found[36 : 36 + 2 * gradients] ^= 255
        return found.tobytes()

    def bits(one: bytes, other: bytes, start: int) -> int:
        return sum((a ^ b).bit_count() for a, b in zip(one[start : start + 32], other[start : start + 32], strict=True))

    def alike(one: bytes, other: bytes) -> bool:
        return (
            min(one[0], other[0]) >= 2
            and max(abs(one[place] - other[place]) for place in (1, 2, 3)) <= 40
            and bits(one, other, 4) <= 30
            and max(bits(one, other, 36), bits(one, other, 68)) <= 64
        )

    fingerprints = [made(*each) for each in drawn]
    expected = [
        (one, other)
        for one in range(len(drawn))
        for other in range(one + 1, len(drawn))
        if alike(fingerprints[one], fingerprints[other])
    ]
    assert near_pairs(fingerprints) == expected


@pytest.mark.parametrize(
    ("start", "bits"), [(4, 30), (36, 64), (68, 64)], ids=["pHash", "gradient along rows", "gradient along columns"]
)
def test_hashes_may_differ_in_so_many_bits_and_no_more(start: int, bits: int) -> None:
    one = bytes([2, 100, 100, 100, *bytes(96)])

    def other(count: int) -> bytes:
        return one[:start] + ((1 << count) - 1).to_bytes(32, "big") + one[start + 32 :]

    assert near_pairs([one, other(bits)]) == [(0, 1)]
    assert near_pairs([one, other(bits + 1)]) == []


def test_pairs_are_found_across_blocks_of_thousands() -> None:
    random = np.random.default_rng(0)
    table = random.integers(0, 256, (3000, FINGERPRINT_BYTES), dtype=np.uint8)
    table[2990:] = table[:10]
    table[:, 0] = 9
    assert near_pairs([row.tobytes() for row in table]) == [(number, 2990 + number) for number in range(10)]


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=20))
def test_groups_are_what_pairs_connect(pairs: list[tuple[int, int]]) -> None:
    group = {number: {number} for pair in pairs for number in pair}
    for _ in pairs:
        for one, other in pairs:
            group[one] = group[other] = group[one] | group[other]
            for number in group[one]:
                group[number] = group[one]
    assert connected(pairs) == sorted({tuple(sorted(members)): sorted(members) for members in group.values()}.values())


# ---- as a picture is read, and from the cache


class Reading:
    """Pictures of a folder read through a cache, and the positions of those that were decoded."""

    def __init__(self, folder: Path, store: Path, *, fingerprints: bool = True):
        torch.manual_seed(0)
        backbone = Backbone("fewtune_conv4").eval()
        self._network = Normalized(backbone, backbone.preprocessing).eval()
        view, side = evaluation_view(backbone.preprocessing), backbone.preprocessing.shortest_side
        self._pictures = Pictures(list_unlabelled([folder]), view, side, 1_000_000, fingerprints=fingerprints)
        self._store = store
        self.decoded: list[int] = []
        self.key: FeatureKey | None = None

    def __call__(self) -> Features:
        fabric, config = open_engine("cpu", "float32"), Config(precision="float32", workers=1)
        with ActivationCache(self._store, display=Display()) as cache:
            examples = Examples(self._pictures, [])
            extractor = FeatureExtractor(
                fabric, self._network, "fewtune_conv4", "features", examples, 4, config, cache, NothingSaid()
            )
            self.key = extractor.key(self._pictures)
            found = extractor.extract(self._pictures)
        self.decoded = list(found.computed)
        return found


def test_fingerprints_are_cached_and_computed_only_on_request(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={"a": 4})
    (folder / "a" / "bad.png").write_bytes(b"no picture")
    reading = Reading(folder, tmp_path / "cache")
    cold = reading().contents
    assert reading.decoded == [0, 1, 2, 3, 4]
    expected = [fingerprint(read_image(folder / "a" / f"00{number}.png")).hex() for number in range(4)]
    assert [cold[number].fingerprint for number in range(5)] == [*expected, None]
    assert reading().contents == cold
    assert reading.decoded == [4]
    plain = Reading(folder, tmp_path / "cache", fingerprints=False)
    assert {content.fingerprint for content in plain().contents.values()} == {None}
    assert plain.decoded == [4]


def test_a_cache_without_fingerprints_is_filled(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={"a": 4})
    before = Reading(folder, tmp_path / "cache", fingerprints=False)()
    reading = Reading(folder, tmp_path / "cache")
    found = reading()
    assert reading.decoded == [0, 1, 2, 3]
    assert torch.equal(found.outputs().values, before.outputs().values)
    assert all(content.fingerprint for content in found.contents.values())
    reading()
    assert reading.decoded == []


def test_a_changed_file_never_gets_the_fingerprint_of_another(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={"a": 3})
    reading = Reading(folder, tmp_path / "cache")
    first = reading().contents
    (folder / "a" / "000.png").write_bytes((folder / "a" / "002.png").read_bytes())
    scene(0).save(folder / "a" / "001.png")
    second = reading().contents
    assert reading.decoded == [1]
    assert second[0] == second[2] == first[2]
    assert second[1].fingerprint == fingerprint(read_image(folder / "a" / "001.png")).hex()


def test_damaged_fingerprints_are_made_again(make_folder: MakeFolder, tmp_path: Path) -> None:
    reading = Reading(make_folder(classes={"a": 3}), tmp_path / "cache")
    first = reading().contents
    assert reading.key is not None
    (shard,) = (tmp_path / "cache" / fingerprint_key(reading.key).name).glob("rows-*")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 255
    shard.write_bytes(content)
    assert reading().contents == first
    assert len(reading.decoded) == 1


@pytest.mark.parametrize("kind", ["random", "alike", "few words", "equal", "none"])
@pytest.mark.parametrize("at_once", [1 << 20, 7])
def test_near_hashes_are_those_of_comparing_every_pair(
    kind: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.data.near_duplicates._AT_ONCE", at_once)
    random = np.random.default_rng(0)
    hashes = random.integers(0, 256, (60, 32), np.uint8)
    if kind == "alike":  # from 0 to about 60 bits of difference from the first
        flips = random.random((60, 256)) < np.linspace(0, 0.25, 60)[:, None]
        hashes = hashes[:1] ^ np.packbits(flips, axis=1)
    elif kind == "few words":
        hashes = random.choice(np.array([0, 3], np.uint8), (60, 32))
    elif kind == "equal":
        hashes = np.repeat(hashes[:1], 60, 0)
    elif kind == "none":
        hashes = hashes[:0]
    differing = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(2, dtype=int)
    expected = {(int(i), int(j)) for i, j in zip(*np.nonzero(differing <= PHASH_BITS), strict=True) if i < j}
    one, other = near_hashes(hashes, PHASH_BITS)
    pairs = list(zip(one.tolist(), other.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected
    assert bool(expected) == (kind not in ("random", "none"))
