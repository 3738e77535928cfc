from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from called import Answer
from drawings import character, folder_of, small
from killing import forked, wait_for
from PIL import Image

from fewshot import Calibration, Embedder, Index, Verifier
from fewshot.evaluation.verification import labelled_pairs, similarity
from fewshot.search import picture_index
from fewshot.search.picture_index import embed_folder
from fewshot.training.train import train_folder
from finetune.errors import InputError

Call = Callable[..., Answer]


def save(path: Path, number: int, drawer: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(255 - character(number, drawer)).save(path)
    return path


def as_json(answer: Answer) -> dict[str, object]:
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert isinstance(found, dict)
    return found


def told(answer: Answer, message: str) -> None:
    """One line on stderr, nothing on stdout, exit code 2."""
    assert answer.code == 2
    assert answer.out == ""
    assert message in answer.err
    assert len(answer.err.strip().splitlines()) == 1


# --- embed and search -------------------------------------------------------------------------------------------------


def test_only_new_and_changed_pictures_are_embedded(call: Call, model: Path, pictures: Path, tmp_path: Path) -> None:
    def embed() -> tuple[object, ...]:
        found = as_json(call("embed", pictures, "--out", tmp_path / "index", "--model", model, "--json"))
        return tuple(found[name] for name in ("pictures", "embedded", "moved", "unchanged", "removed"))

    assert embed() == (12, 12, 0, 0, 0)
    assert embed() == (12, 0, 0, 12, 0)
    save(pictures / "sign 0" / "new.png", 9)
    save(pictures / "sign 1" / "0.png", 10)
    (pictures / "sign 2" / "0.png").rename(pictures / "sign 2" / "other.png")
    (pictures / "sign 3" / "0.png").unlink()
    assert embed() == (12, 2, 1, 9, 2)
    index = Index.load(tmp_path / "index")
    fresh = Embedder.load(model, device="cpu").embed([pictures / key for key in index.keys])
    np.testing.assert_allclose(index.vectors(index.keys), fresh, atol=1e-5)


def test_two_pictures_that_swap_names_keep_their_vectors(
    call: Call, model: Path, pictures: Path, tmp_path: Path
) -> None:
    command = ("embed", pictures, "--out", tmp_path / "index", "--model", model, "--json")
    as_json(call(*command))
    one, other, between = (pictures / "sign 0" / name for name in ("0.png", "1.png", "2.tmp"))
    for source, target in ((one, between), (other, one), (between, other)):
        source.rename(target)
    assert as_json(call(*command))["moved"] == 2
    index = Index.load(tmp_path / "index")
    fresh = Embedder.load(model, device="cpu").embed([pictures / key for key in index.keys])
    np.testing.assert_allclose(index.vectors(index.keys), fresh, atol=1e-5)


def test_unreadable_pictures_are_listed_and_left_out(call: Call, model: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "sign 0" / "0.png").write_text("no picture")
    (pictures / "sign 9").mkdir()
    (pictures / "sign 9" / "empty.png").touch()
    answer = call("embed", pictures, "--out", tmp_path / "index", "--model", model, "--json")
    found = as_json(answer)
    assert found["pictures"] == 11
    assert found["unreadable"] == {"sign 0/0.png": "not a picture", "sign 9/empty.png": "empty file"}
    assert "sign 0/0.png: not a picture" in answer.err


@pytest.mark.slow
def test_a_killed_embed_continues(model: Path, tmp_path: Path) -> None:
    for number in range(60):
        save(tmp_path / "many" / f"{number}.png", number % 20, number // 20)
    out, embedder = tmp_path / "index", Embedder.load(model, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture_index, "AT_ONCE", 2)
        patch.setattr(picture_index, "SAVE_EVERY", 0.0)
        with forked(embed_folder, tmp_path / "many", out, embedder) as process:
            wait_for(out / "index.json", process)
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"
    there = len(Index.load(out))
    assert 0 < there < 60
    index, kept = embed_folder(tmp_path / "many", out, embedder)
    assert (len(index), kept.unchanged, kept.embedded) == (60, there, 60 - there)


def test_search_finds_the_query_and_draws_a_sheet(call: Call, model: Path, pictures: Path, tmp_path: Path) -> None:
    call("embed", pictures, "--out", tmp_path / "index", "--model", model)
    query = pictures / "sign 2" / "1.png"
    sheet = tmp_path / "sheet.png"
    answer = call("search", tmp_path / "index", query, "-k", 3, "--sheet", sheet, "--json")
    assert answer.code == 0, answer.err
    ((found,),) = (json.loads(answer.out),)
    assert found["query"] == str(query)
    similarities = [neighbour["similarity"] for neighbour in found["neighbours"]]
    assert found["neighbours"][0]["key"] == "sign 2/1.png"
    assert similarities[0] == pytest.approx(1, abs=1e-5)
    assert similarities == sorted(similarities, reverse=True)
    with Image.open(sheet) as image:
        assert min(image.size) > 200
    only = call("search", tmp_path / "index", query, "--at-least", 0.99999)
    assert only.out.count("sign ") == 2  # the query, and itself


def test_search_refuses_another_encoder(call: Call, model: Path, pictures: Path, tmp_path: Path) -> None:
    call("embed", pictures, "--out", tmp_path / "index", "--model", model)
    told(call("search", tmp_path / "index", pictures, "--model", "omniglot"), "holds vectors of embedder")
    told(call("embed", pictures, "--out", tmp_path / "index"), "holds vectors of embedder")
    save(tmp_path / "others" / "a.png", 1)
    told(call("embed", tmp_path / "others", "--out", tmp_path / "index", "--model", model), "is the index of")
    told(call("search", tmp_path / "others", pictures), "is no index")
    told(call("embed", tmp_path / "empty", "--out", tmp_path / "index"), "does not exist")


@pytest.mark.skipif(sys.platform == "win32", reason="names are text there")
def test_file_names_can_be_any_text(call: Call, model: Path, pictures: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9 \xf0\x9f\x90\x84")
    odd.mkdir()
    shutil.copy(pictures / "sign 0" / "0.png", odd / "sign.png")
    assert call("embed", odd, "--out", tmp_path / "index", "--model", model).code == 0
    assert "sign.png" in call("search", tmp_path / "index", odd / "sign.png").out


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_calibrates_on_a_folder(call: Call, model: Path, pictures: Path) -> None:
    one, other = pictures / "sign 0" / "0.png", pictures / "sign 3" / "1.png"
    told(call("verify", one, other, "--model", model), "calibrate it on a folder of pictures")
    words = ("verify", one, other, "--model", model, "--calibrate", pictures, "--json")
    found = as_json(call(*words))
    embedder = Embedder.load(model, device="cpu")
    paths = sorted(pictures.rglob("*.png"))
    rows, same = labelled_pairs([path.parent.name for path in paths])
    scores = similarity(torch.from_numpy(embedder.embed(paths)), rows)
    threshold = found["threshold"]
    assert isinstance(threshold, float)
    assert found["false_accept_rate"] == float((scores[~same] >= threshold).float().mean())
    assert found["false_reject_rate"] == pytest.approx(float((scores[same] < threshold).float().mean()))
    assert found["same"] == (found["similarity"] >= threshold)  # type: ignore[operator]
    laxer = as_json(call(*words, "--false-accept-rate", 0.5))
    assert laxer["threshold"] < threshold  # type: ignore[operator]


def test_a_verifier_calibrates_on_pairs(model: Path, pictures: Path) -> None:
    verifier = Verifier(Embedder.load(model, device="cpu"))
    paths = sorted(pictures.rglob("*.png"))
    pairs = [(one, other, one.parent == other.parent) for one in paths for other in paths if one < other]
    calibration = verifier.calibrate(pairs, false_accept_rate=0.2)
    assert calibration.same_pairs == 12
    assert calibration.different_pairs == 54
    assert calibration.false_accept_rate <= 0.2
    itself = verifier.verify(paths[0], paths[0])
    assert itself.same
    assert itself.similarity == pytest.approx(1)
    assert itself.score == 1
    with pytest.raises(InputError, match="between 0 and 1"):
        verifier.accept(1.0)


def test_held_out_classes_give_the_threshold_of_verify(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", classes=12, each=3)
    train_folder(folder, tmp_path / "run", config=small(alphabets=1, ways=4))
    carried = Embedder.load(tmp_path / "run", device="cpu").verification
    assert carried is not None
    found = Calibration.from_dict(carried)
    # Three classes of three pictures are held out: all of their pairs.
    assert (found.same_pairs, found.different_pairs) == (9, 27)
    first = sorted(folder.rglob("*.png"))[0]
    assert Verifier(Embedder.load(tmp_path / "run", device="cpu")).verify(first, first).threshold == found.threshold
    train_folder(folder, tmp_path / "all", config=small(alphabets=1, ways=4), everything=True)
    assert Embedder.load(tmp_path / "all", device="cpu").verification is None


def test_info_describes_an_index_and_an_encoder(call: Call, model: Path, pictures: Path, tmp_path: Path) -> None:
    call("embed", pictures, "--out", tmp_path / "index", "--model", model)
    fingerprint = Embedder.load(model, device="cpu").fingerprint
    index = as_json(call("info", tmp_path / "index", "--json"))
    assert (index["what"], index["pictures"], index["pictures_below"]) == ("index", 12, str(pictures))
    encoder = as_json(call("info", model, "--json"))
    assert (encoder["what"], encoder["side"]) == ("encoder", 16)
    assert index["fingerprint"] == encoder["fingerprint"] == fingerprint
    told(call("info", tmp_path / "nothing"), "is no encoder")


def test_weights_without_a_model_are_refused(call: Call, model: Path, pictures: Path, tmp_path: Path) -> None:
    call("embed", pictures, "--out", tmp_path / "index", "--model", model)
    weights = model / "model.safetensors"
    told(call("search", tmp_path / "index", pictures, "--weights", weights), "--weights needs --model")
    told(call("enrol", tmp_path / "g", "one", pictures / "sign 1", "--weights", weights), "--weights needs --model")


def test_every_exported_name_exists() -> None:
    import fewshot

    for name in fewshot.__all__:
        assert getattr(fewshot, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fewshot.nothing
