from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from called import Answer
from hub_stand_in import Hub, sha

import finetune
from finetune.app.page.tried_run import TriedRun
from finetune.errors import InputError

# The hub's client hands files to its HTTP library in an old way.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning"),
    pytest.mark.slow,
]

AT = "hf://me/colours"


@pytest.fixture
def there(logged_in: Hub, small: Path) -> Hub:
    """The hub with the run, which knows the hashes of its pictures."""
    finetune.push_to_hub(small / "run", "me/colours", include=["hashes"])
    return logged_in


def test_push_prints_the_address_of_the_commit(logged_in: Hub, small: Path, run: Callable[..., Answer]) -> None:
    answer = run("push", small / "run", "me/colours", "--private", "--licence", "mit", "--include", "hashes")
    assert (answer.code, answer.out) == (0, f"hf://me/colours@{sha(1)}\n")
    assert "private repository hf://me/colours" in answer.err
    assert logged_in.repositories["me/colours"].private
    found = run("push", small / "run", "me/colours", "--json")
    assert json.loads(found.out) == {"address": f"hf://me/colours@{sha(2)}"}
    assert found.err == ""
    assert logged_in.token not in answer.out + answer.err


def test_commands_that_read_a_run_take_an_address(
    there: Hub, small: Path, run: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = small / "pictures" / "red" / "00.png"
    answer = run("predict", AT, picture, "--device", "cpu", "--json")
    assert json.loads(answer.out)["label"] == "red"
    assert answer.err.startswith(f"fetching {AT} at commit ")  # what is downloaded is said, always
    again = run("predict", AT, picture, "--device", "cpu", "--target-error", "0.6", "--false-accept-rate", "0.5")
    assert (again.code, "fetching" in again.err) == (0, False), again
    explained = run("explain", AT, picture, "--out", "maps", "--device", "cpu")
    assert (explained.code, (tmp_path / "maps" / "00.png").exists()) == (0, True)
    measured = run("evaluate", AT, small / "pictures", "--device", "cpu", "--json")
    assert json.loads(measured.out)["left_out_trained_on"] == 34  # by the hashes
    written = run("evaluate", AT, small / "pictures", "--device", "cpu", "--out", "measured")
    assert written.code == 0, written
    assert json.loads((tmp_path / "measured" / "metrics.json").read_text())["evaluated"]["run"] == AT
    exported = run("export", AT, "--format", "torch-export")
    assert (exported.code, "--pictures" in exported.err, AT in exported.err) == (2, True, True)
    exported = run("export", AT, "--format", "torch-export", "--pictures", small / "pictures")
    assert (exported.code, (tmp_path / "colours.pt2").exists()) == (0, True), exported


def test_an_evaluation_says_where_it_cannot_leave_out_what_was_learned(
    logged_in: Hub, small: Path, run: Callable[..., Answer]
) -> None:
    finetune.push_to_hub(small / "run", "me/colours")
    answer = run("evaluate", AT, small / "pictures", "--device", "cpu")
    assert answer.code == 0
    assert f"{AT} has no hashes of its pictures" in answer.err


@pytest.mark.parametrize(
    "words",
    [("extend", AT, "."), ("forget", AT, "--class", "red"), ("undo", AT), ("history", AT), ("report", AT),
     ("push", AT, "me/more")],
)  # fmt: skip
def test_commands_that_change_a_run_say_that_they_need_a_folder(
    words: tuple[str, ...], run: Callable[..., Answer]
) -> None:
    answer = run(*words)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == (
        f"finetune: {AT} is on the hub, where nothing is changed; `hf download me/colours --local-dir RUN` makes a run "
        "folder of it\n"
    )


def test_a_wrong_address_is_one_line(run: Callable[..., Answer], there: Hub) -> None:
    for words in (("predict", "hf://me", "."), ("evaluate", "hf://me/a@", "."), ("predict", "hf://me/nothing", ".")):
        answer = run(*words)
        assert (answer.code, answer.out, len(answer.err.splitlines())) == (2, "", 1)
        assert "hf://" in answer.err


def test_a_classifier_of_the_hub_is_not_changed(there: Hub, small: Path) -> None:
    classifier = finetune.load(AT, device="cpu")
    for change in (lambda: classifier.extend(small / "pictures"), lambda: classifier.forget(classes=["red"])):
        with pytest.raises(InputError, match="is on the hub, where nothing is changed"):
            change()
    for named in (AT, Path(AT)):
        with pytest.raises(InputError, match="is on the hub, where nothing is changed"):
            finetune.extend(named, small / "pictures")


def test_the_page_shows_a_run_of_the_hub_and_refuses_to_change_it(there: Hub, small: Path) -> None:
    tried = TriedRun(AT, "cpu")
    picture = (small / "pictures" / "red" / "00.png").read_bytes()
    assert tried.wording().title == AT
    assert tried.answer(picture, {}).verdict == "red"
    with pytest.raises(InputError, match="is on the hub"):
        tried.add(picture, "blue")
