"""Pages as Markdown beside the HTML, and llms.txt, which lists them."""

from __future__ import annotations

import re
from pathlib import Path

from generate.names import plain

SUMMARY = (
    "Image classifiers from few pictures. `finetune` trains a classifier on a folder of pictures and says how good it "
    "is; `fewshot` recognises, compares and searches pictures from one example of each class."
)
SECTIONS = {
    "start": "Start",
    "learn": "Learn",
    "howto": "How to",
    "reference": "Reference",
    "numbers": "Numbers",
    "why": "Why",
}


def write_copies(sources: dict[str, Path], out: Path) -> None:
    """Write each page of `sources`, by its name in the documentation, to `out`/NAME.md, and llms.txt."""
    listed: dict[str, list[str]] = {title: [] for title in SECTIONS.values()}
    for name, source in sorted(sources.items()):
        text = source.read_text(encoding="utf-8")
        if name.startswith("reference/generated/names/"):
            text = plain(Path(name).name)
        elif source.suffix != ".md":
            text = from_gallery(text)
        text = re.sub(r"(\]\([^)\s]+)\.rst\)", r"\1.md)", included(text, source))  # tutorials have copies too
        copy = out / f"{name}.md"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text, encoding="utf-8")
        section = SECTIONS.get(name.split("/")[0], "How to")
        if name != "index" and "generated/names" not in name:
            listed[section].append(f"- [{title_of(text, name)}]({name}.md)")
    lines = ["# fewtune", "", f"> {SUMMARY}", ""]
    for title, links in listed.items():
        if links:
            lines += [f"## {title}", "", *links, ""]
    (out / "llms.txt").write_text("\n".join(lines), encoding="utf-8")


def included(text: str, source: Path) -> str:
    """The page with the files that it includes, and without its lists of pages and what is for Sphinx alone."""
    text = re.sub(r"\A---\n.*?\n---\n+", "", text, flags=re.DOTALL)
    text = re.sub(r"```\{include\} (\S+)\n(?::.*\n)*```", lambda found: read(source.parent / found[1]), text)
    return re.sub(r"```\{toctree\}.*?```\n", "", text, flags=re.DOTALL)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def from_gallery(text: str) -> str:
    """The text of a tutorial, without the directives for pictures, frames and downloads."""
    named = r"only|note|image-sg|rst-class|raw|_|DO NOT|THIS|\""
    return re.sub(rf"^\.\. ({named})[^\n]*\n(?:[ ]{{2,}}[^\n]*\n|\n)*", "", text, flags=re.MULTILINE)


def title_of(text: str, name: str) -> str:
    found = re.search(r"^# (.+)$", text, re.MULTILINE) or re.search(r"^(.+)\n=+$", text, re.MULTILINE)
    return found[1].replace("`", "") if found else name
