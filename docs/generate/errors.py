"""A page of messages: notices, and every error that is raised on purpose, collected from the source code."""

from __future__ import annotations

import ast
from pathlib import Path

from generate.remedies import NOTICES, remedy

RAISED = {
    "InputError": "input that cannot be used",
    "UnreadablePicture": "a picture that cannot be decoded",
    "TrainingDiverged": "a training that failed",
    "FewtuneError": "other errors",
    "UsageError": "usage of a command",
    "BadParameter": "usage of a command",
}


def write_error_page(root: Path, path: Path) -> None:
    """Write the messages of `root`/finetune and `root`/fewshot to `path`."""
    lines = [
        "# Messages",
        "",
        "Search this page for words of the message that you see. A text in CAPITALS stands for what the message names.",
        "",
        "An **error** is one line that names the file, folder or option. Commands print it on stderr and end with its",
        "exit code, 2 for input that cannot be used; nothing is lost or half-written. From Python, the same text is",
        "raised as `InputError` or another error below [`FewtuneError`](names/finetune.FewtuneError.md). Most messages",
        "say themselves what to do; where one does not, the last column has its cause and remedy.",
        "",
        "## Notices",
        "",
        "Lines that stop nothing, while a command runs. Warnings of Python are not used.",
        "",
        "| in the line | cause, and what to do |",
        "|---|---|",
        *(f"| … {escaped(part)} … | {text} |" for part, text in NOTICES.items()),
        "",
    ]
    for package in ("finetune", "fewshot"):
        rooms: dict[str, list[tuple[str, str]]] = {}
        for file in sorted((root / package).rglob("*.py")):
            room = file.relative_to(root / package).parts[0].removesuffix(".py")
            rooms.setdefault(room, []).extend(messages(file.read_text(encoding="utf-8")))
        for room, found in rooms.items():
            if not found:
                continue
            lines += [
                f"## `{package}`: {room.replace('_', ' ')}",
                "",
                "| error | raised as | cause, and what to do |",
                "|---|---|---|",
            ]
            lines += [f"| {escaped(text)} | `{name}` | {remedy(text)} |" for text, name in dict.fromkeys(found)]
            lines.append("")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")


def messages(source: str) -> list[tuple[str, str]]:
    """(message, name of the error) of every error that is made in `source` with a text of its own."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in RAISED:
            text = " ".join(part for part in map(template, node.args) if part)
            # Names alone say nothing; a message has small letters.
            if any(letter.islower() for letter in text):
                found.append((" ".join(text.split()), name))
    return found


def template(node: ast.expr) -> str:
    """The text of a string or f-string, with NAMES in place of values."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return placeholder(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return placeholder(node)


def placeholder(node: ast.expr) -> str:
    """A name in capitals for a value, by the last name of its expression."""
    names = [
        each.attr if isinstance(each, ast.Attribute) else each.id
        for each in ast.walk(node)
        if hasattr(each, "ctx") and isinstance(each, (ast.Attribute, ast.Name))
    ]
    return names[0].strip("_").upper().replace("_", " ") if names else "VALUE"


def escaped(text: str) -> str:
    for sign in "\\|<*_[]`":
        text = text.replace(sign, f"\\{sign}")
    return text
