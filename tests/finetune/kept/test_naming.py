"""Pictures of a run by path, file, folder or hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from finetune.data.images import Content
from finetune.kept.naming import NamedPictures

NAMES = st.sampled_from(["a", "b", "ab", "a b", "a.png", "a!"])  # one is the beginning of others, some sort around /
PLACES = st.lists(st.lists(NAMES, min_size=1, max_size=3).map(tuple), unique=True, max_size=12)


@given(places=PLACES, asked=st.lists(NAMES, max_size=3), kinds=st.lists(st.integers(0, 3), min_size=12, max_size=12))
def test_a_folder_names_what_is_below_it_and_a_file_itself_with_their_copies(
    places: list[tuple[str, ...]], asked: list[str], kinds: list[int]
) -> None:
    root = Path("/nowhere/at/all")
    hashes = [f"{kind:064x}" for kind in kinds[: len(places)]]
    paths = [root.joinpath(*place) for place in places]
    found = NamedPictures([str(path) for path in paths], [Content(sha256, None, None) for sha256 in hashes])
    folder = root.joinpath(*asked)
    below = {hashes[position] for position, path in enumerate(paths) if path.is_relative_to(folder)}
    assert found.find(str(folder)) == {position for position, sha256 in enumerate(hashes) if sha256 in below}


def test_a_picture_is_found_by_its_path_in_the_run_its_hash_and_a_copy_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(b"picture")
    sha256 = hashlib.sha256(b"picture").hexdigest()
    contents = [Content(sha256, None, None), Content("", None, "not a picture"), Content("0" * 64, None, None)]
    found = NamedPictures(
        ["/gone/x/a.png", "/gone/x/b.png", "/gone/y/a.png"], contents, ["x/a.png", "x/b.png", "y/a.png"]
    )
    assert found.find("x/a.png") == found.find(sha256.upper()) == found.find(str(tmp_path / "copy")) == {0}
    assert found.find("x/b.png") == {1}, "unreadable pictures are no copies of each other"
    assert found.find("/gone/x") == {0, 1}
    assert found.find("x") == found.find("") == set()
