"""A page for each command, from click: usage, help text, and every option with its default."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click


def write_command_pages(folder: Path) -> None:
    """Write `folder`/PROGRAM-COMMAND.md for every command, and index.md, which lists them."""
    from fewshot.cli.main import cli as fewshot
    from finetune.cli.main import cli as finetune

    folder.mkdir(parents=True, exist_ok=True)
    index = [
        "# Commands",
        "",
        "`PROGRAM COMMAND --help` shows the same. All commands end with exit code 0 on success, 1",
    ]
    index += ["where a training failed, 2 for input that cannot be used, and 130 after Ctrl-C.", ""]
    for program, group in (("finetune", finetune), ("fewshot", fewshot)):
        index += [f"## `{program}`", "", "| command | what it does |", "|---|---|"]
        for words, command in walk(group, (program,)):
            name = "-".join(words)
            # The index lists the commands; in the navigation of every page they would slow the build down.
            page = "\n".join(["---", "orphan: true", "---", "", *command_page(words, command)]) + "\n"
            (folder / f"{name}.md").write_text(page, encoding="utf-8")
            index.append(f"| [`{' '.join(words)}`]({name}.md) | {cell(command.get_short_help_str(200))} |")
        index.append("")
    (folder / "index.md").write_text("\n".join(index), encoding="utf-8")


def walk(group: click.Group, words: tuple[str, ...]) -> list[tuple[tuple[str, ...], click.Command]]:
    """Commands of a group and of its groups, in the order of use."""
    context = click.Context(group, info_name=" ".join(words))
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        if isinstance(command, click.Group):
            found += walk(command, (*words, name))
        else:
            found.append(((*words, name), command))
    return found


def command_page(words: tuple[str, ...], command: click.Command) -> list[str]:
    called = " ".join(words)
    context = click.Context(command, info_name=called)
    usage = " ".join([called, *command.collect_usage_pieces(context)])
    lines = [f"# `{called}`", "", *inspect.cleandoc(command.help or "").splitlines()]
    lines += ["", "```", usage, "```", ""]
    sections: dict[str, list[str]] = {}
    for option in command.get_params(context):
        if not isinstance(option, click.Option) or option.hidden or "--help" in option.opts:
            continue
        names, _ = option.get_help_record(context) or ("", "")
        extra = option.get_help_extra(context)
        limits = f" Range: {extra['range']}." if extra.get("range") else ""
        default = "required" if extra.get("required") else str(extra.get("default", ""))
        default = re.sub(r"^\((.*)\)$", r"\1", default, flags=re.DOTALL)
        if not default and option.is_flag:
            default = "off"
        row = f"| {named(names)} | {cell((option.help or '') + limits)} | {cell(default)} |"
        sections.setdefault(getattr(option, "section", "Options"), []).append(row)
    for heading, rows in sections.items():
        lines += [f"## {heading}", "", "| option | what it does | default |", "|---|---|---|", *rows, ""]
    return lines


def named(text: str) -> str:
    """The names of an option as code, and its values, such as [auto|head], as text that can be broken."""
    names = re.findall(r"--?[a-z][\w-]*", text.split("[")[0])
    values = re.sub(r"(--?[a-z][\w-]*|[ ,/])+", "", text, count=1).strip("[]")
    values = re.sub(r"(FLOAT|INTEGER) RANGE", r"\1", values).replace("|", " \\| ")
    return f"{' '.join(f'`{name}`' for name in names)} {values}".strip()


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
