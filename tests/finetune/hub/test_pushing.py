from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hostile_names import NAMES
from hub_stand_in import Hub, sha
from told import Told

import finetune
from finetune.classifier.published.card import model_card
from finetune.classifier.published.contents import _PLACES, published_files
from finetune.classifier.run_config import RunConfig, read_run_config
from finetune.classifier.run_metrics import RunMetrics, read_run_metrics
from finetune.errors import InputError
from finetune.hub.address import Address
from finetune.progress import Display

# The hub's client hands files to its HTTP library in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")

ALWAYS = {
    "config.json", "model.safetensors", "metrics.json", "unknown.safetensors", "predictions.csv", "README.md",
    ".gitattributes",
}  # fmt: skip


def pushed(hub: Hub, name: str = "me/colours") -> dict[str, bytes]:
    return hub.repositories[name].commits[-1]


def metadata(card: str) -> dict[str, object]:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found
    values: dict[str, object] = yaml.safe_load(found[1])
    return values


@pytest.mark.slow
def test_what_is_pushed_answers_as_the_run_does(logged_in: Hub, small: Path) -> None:
    told = Told()
    here = finetune.load(small / "run", device="cpu")
    address = here.push_to_hub("me/colours", licence="mit", display=told)
    assert address == f"hf://me/colours@{sha(1)}"
    assert set(pushed(logged_in)) == ALWAYS
    assert told.lines[0].startswith("pushing 6 files, ")
    assert told.lines[0].endswith("to the public repository hf://me/colours")
    assert "features.safetensors (features and names of every picture, their folder)" in told.lines[1]
    assert len(told.lines) == 2
    pictures = sorted((small / "pictures").rglob("*.png"))
    there = finetune.load("hf://me/colours", device="cpu")
    for found, expected in zip(
        there.predict_all(pictures, false_accept_rate=0.1),
        here.predict_all(pictures, false_accept_rate=0.1),
        strict=True,
    ):
        assert found == expected
    assert there.run_metrics is not None
    assert there.run_metrics.accuracy == here.metrics["accuracy"]
    assert (there.folder, there.address) == (None, address)
    assert repr(there).endswith(f"from {address}>")


def test_no_picture_no_name_of_one_and_no_folder_is_pushed(logged_in: Hub, small: Path) -> None:
    finetune.push_to_hub(small / "run", "me/colours")
    paths = {path.name for path in (small / "pictures").rglob("*.png")}
    for name, content in pushed(logged_in).items():
        assert str(small).encode() not in content, name
        if not name.endswith(".safetensors"):
            assert not any(path.encode() in content for path in paths), name
    header = pushed(logged_in)["predictions.csv"].splitlines()[0]
    assert header == b"split,label,predicted,probability,probability_of_label"


def test_hashes_features_and_the_report_are_pushed_where_they_are_asked_for(logged_in: Hub, small: Path) -> None:
    finetune.push_to_hub(small / "run", "me/colours", include=["hashes", "features", "report"])
    files = pushed(logged_in)
    assert set(files) == ALWAYS | {"pictures.csv", "features.safetensors", "report.html"}
    assert files["pictures.csv"].splitlines()[0] == b"split,label,sha256,learned"
    # What a later push leaves out is gone: it would be of another run.
    finetune.push_to_hub(small / "run", "me/colours", include=["hashes"])
    assert set(pushed(logged_in)) == ALWAYS | {"pictures.csv"}
    with pytest.raises(InputError, match="--include must be one of hashes, features, report, not 'feature'; did you"):
        finetune.push_to_hub(small / "run", "me/colours", include=["feature"])


@pytest.mark.slow
def test_a_run_with_features_is_extended_where_it_is_downloaded(logged_in: Hub, small: Path, tmp_path: Path) -> None:
    finetune.push_to_hub(small / "run", "me/colours", include=["features"])
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    for name, content in pushed(logged_in).items():  # as `hf download --local-dir` does
        (there / name).write_bytes(content)
    shutil.copytree(small / "run", here)
    changed = [finetune.forget(run, pictures=["red/03.png"], device="cpu") for run in (there, here)]
    tensors = [classifier.network.state_dict() for classifier in changed]
    assert all(bool((tensors[0][name] == tensors[1][name]).all()) for name in tensors[1])


def test_every_option_that_names_a_place_is_known() -> None:
    places = {each.name for each in fields(finetune.Config) if each.metadata.get("metavar") in ("DIR", "FILE")}
    assert places == set(_PLACES)


def test_options_and_figures_lose_what_names_this_machine(small: Path, tmp_path: Path) -> None:
    config = read_run_config(small / "run")
    options = config.config | {"weights": "/home/ann/secret/net.safetensors", "unlabelled": "/home/ann/more"}
    values = json.loads((small / "run" / "metrics.json").read_text())
    values |= {
        "unreadable": [{"path": "ann/1.png", "reason": "cut"}],
        "left_out": [{"path": "ann/2.png", "reason": "as ann/3.png"}],
        "notes": ["ann/4.png is odd"],
        "unlabelled": {
            "folder": "/home/ann/more", "pictures": 1, "strength": 0.5, "unreadable": [],
            "label_next": [{
                "path": "ann/5.png", "predicted": "red", "probability": 0.6, "second": "blue", "doubt": 0.1,
                "novelty": 0.1, "score": 0.1,
            }],
        },
    }  # fmt: skip
    metrics = RunMetrics.from_dict(values)
    made = RunConfig(**{**vars(config), "config": options, "asked": {"weights_dir": "/home/ann/nets"}})
    stage = tmp_path / "stage"
    files = published_files(small / "run", made, metrics, (), stage)
    texts = [files[name].read_text() for name in ("config.json", "metrics.json")]
    assert not any("ann" in text for text in texts)
    assert json.loads(texts[0])["config"]["weights"] == "net.safetensors"
    assert read_run_config(stage).classes == config.classes
    assert read_run_metrics(stage).unlabelled is not None


def test_the_card_says_what_the_hub_and_a_reader_want_to_know(logged_in: Hub, small: Path) -> None:
    finetune.push_to_hub(small / "run", "me/colours", licence="apache-2.0")
    card = pushed(logged_in)["README.md"].decode()
    values = metadata(card)
    assert {key: values[key] for key in ("library_name", "license", "pipeline_tag")} == {
        "library_name": "fewtune",
        "license": "apache-2.0",
        "pipeline_tag": "image-classification",
    }
    metrics = finetune.load(small / "run", device="cpu").metrics
    (entry,) = values["model-index"][0]["results"]  # type: ignore[index]
    assert entry["metrics"][0]["value"] == round(metrics["accuracy"], 4)
    assert entry["metrics"][0]["args"]["interval"] == [round(bound, 4) for bound in metrics["interval"]]
    low, high = metrics["interval"]
    for words in (
        'load("hf://me/colours")',
        "finetune predict hf://me/colours PICTURES",
        f"| **this model** | {metrics['accuracy']:.1%} | {low:.1%} to {high:.1%} |",
        "blue, red",
        "fewtune_conv4",
        "What it does not know",
        "names one of its 2 classes for every picture, also for a picture of none of them",
        "It has learned from 28 pictures, about 14 of each class",
    ):
        assert words in card


def test_the_card_names_the_published_weights_that_it_is_based_on_and_no_others(small: Path) -> None:
    config = read_run_config(small / "run")
    for options, base in (
        ({"backbone": "resnet18.a1_in1k"}, "timm/resnet18.a1_in1k"),
        ({"backbone": "resnet18.a1_in1k", "weights": "net.safetensors"}, None),
        ({"backbone": "fewtune_conv4"}, None),
    ):
        made = RunConfig(**{**vars(config), "config": config.config | options})
        card = model_card(Address("me/colours"), made, None, set(), None)
        assert metadata(card).get("base_model") == base
        assert ("weights from a file" in card) == ("weights" in options)
        assert ("licence apache-2.0" in card) == (base is not None)


def test_names_of_classes_are_no_markup_of_the_card(small: Path) -> None:
    names = (*NAMES, "<script>alert(1)</script>", "![](http://evil)", "a|b", "`code`", "---", "# title", "*b*")
    config = read_run_config(small / "run")
    made = RunConfig(**{**vars(config), "classes": names})
    card = model_card(Address("me/colours"), made, None, set(), None)
    assert metadata(card)["library_name"] == "fewtune"
    (line,) = [line for line in card.splitlines() if "script" in line]
    assert "&lt;script&gt;" in line
    assert r"\!\[\]\(http\://evil\)" in line
    assert not re.search(r"(?<!\\)[|*`\[]", line)
    assert not any(sign in card for sign in ("\x1b", "‮", "\r"))
    assert "None: the run has no pictures to measure it on." in card


@pytest.mark.parametrize("licence", ["MIT", "my own", "mit\nevil: true", ""])
def test_a_licence_is_the_name_that_the_hub_has_for_it(licence: str, logged_in: Hub, small: Path) -> None:
    with pytest.raises(InputError, match="--licence takes the hub's name"):
        finetune.push_to_hub(small / "run", "me/colours", licence=licence)
    assert logged_in.repositories == {}


def test_private_is_private_and_never_public(logged_in: Hub, small: Path) -> None:
    finetune.push_to_hub(small / "run", "me/colours", private=True)
    assert logged_in.repositories["me/colours"].private
    logged_in.put("me/open", {})
    with pytest.raises(InputError, match="is public already"):
        finetune.push_to_hub(small / "run", "me/open", private=True)
    assert len(logged_in.repositories["me/open"].commits) == 1


def test_a_model_of_another_kind_is_not_replaced(logged_in: Hub, small: Path) -> None:
    logged_in.put("me/bert", {"config.json": b"{}", "README.md": b"---\nlibrary_name: transformers\n---\n"})
    with pytest.raises(InputError, match="holds a model of another kind"):
        finetune.push_to_hub(small / "run", "me/bert")
    assert len(logged_in.repositories["me/bert"].commits) == 1


def test_without_a_token_nothing_is_pushed_and_the_message_says_how_to_log_in(hub: Hub, small: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be pushed to: .*`hf auth login`, or set HF_TOKEN") as caught:
        finetune.push_to_hub(small / "run", "me/colours")
    assert "\n" not in str(caught.value)
    assert hub.repositories == {}


def test_an_upload_that_fails_changes_nothing_and_tells_no_secret(
    logged_in: Hub, small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logged_in.cut_uploads = True
    with pytest.raises(InputError, match="cannot be pushed to: the hub refuses it") as caught:
        finetune.push_to_hub(small / "run", "me/colours", display=Display())
    assert len(logged_in.repositories["me/colours"].commits) == 1
    said = str(caught.value) + "".join(capfd.readouterr())
    assert "\n" not in said
    assert not any(secret in said for secret in (logged_in.token, "signed_for_a_test"))


def test_without_the_network_the_message_comes_at_once(
    logged_in: Hub, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(InputError, match="because the hub cannot be reached: Connection refused"):
        finetune.push_to_hub(small / "run", "me/colours")


def test_what_is_no_finished_run_is_not_pushed(logged_in: Hub, small: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run folder"):
        finetune.push_to_hub(tmp_path / "nowhere", "me/colours")
    assert not (tmp_path / "nowhere").exists()
    run = tmp_path / "run"
    shutil.copytree(small / "run", run)
    (run / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="is not a valid safetensors file"):
        finetune.push_to_hub(run, "me/colours")
    with pytest.raises(InputError, match="names a revision"):
        finetune.push_to_hub(small / "run", "me/colours@v1")
    assert logged_in.repositories == {}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b'{"format": 1, "config": {"backbone": "hf-hub:evil/net"}, "classes": ["a", "b"]}'),
        ("config.json", b"[" * 100_000),
        ("model.safetensors", b"\x80\x04pickle"),
        ("metrics.json", b'{"accuracy": NaN}'),
        ("unknown.safetensors", b"\xff" * 100),
    ],
)
def test_a_hostile_repository_is_one_line_as_a_hostile_folder_is(
    name: str, content: bytes, hub: Hub, small: Path, tmp_path: Path
) -> None:
    wanted = ("config.json", "model.safetensors", "metrics.json", "unknown.safetensors")
    hub.put("me/colours", {each: (small / "run" / each).read_bytes() for each in wanted} | {name: content})
    with pytest.raises(InputError) as caught:
        finetune.load("hf://me/colours", device="cpu")
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert not any("evil" in path for _, path in hub.asked)


def test_a_run_without_figures_is_pushed_too(logged_in: Hub, small: Path, tmp_path: Path) -> None:
    finetune.load(small / "run", device="cpu").save(tmp_path / "bare")
    finetune.push_to_hub(tmp_path / "bare", "me/bare")
    assert set(pushed(logged_in, "me/bare")) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
