"""What `--help` of a command must be like for a newcomer to read it."""

from __future__ import annotations

from collections.abc import Iterator

import click


def commands_below(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """The command and all commands below it, each with its full name."""
    yield path, command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands_below(below, f"{path} {name}")


def complaints(command: click.Command, path: str) -> list[str]:
    """Every text in the help of `command` and those below that is missing, or is no whole sentence."""
    found = []
    for name, each in commands_below(command, path):
        if not is_sentence(each.help or ""):
            found.append(f"{name}: its help is no sentence: {each.help!r}")
        for option in each.params:
            if isinstance(option, click.Option):
                found += [f"{name} {option.opts[0]}: {reason}" for reason in _complaints_of(option)]
    return found


def is_sentence(text: str) -> bool:
    text = " ".join(text.split())
    return bool(text) and text.endswith(".") and (text[0].isupper() or text.split()[0] in ("auto",))


def _complaints_of(option: click.Option) -> Iterator[str]:
    if not is_sentence(option.help or ""):
        yield f"its help is no sentence: {option.help!r}"
    plain_flag = option.is_flag and not option.secondary_opts
    # A repeated option shows its default as a list, a plain flag is off.
    if plain_flag or option.required:
        return
    shown = option.show_default
    if not shown or (shown is True and option.default is None):
        yield "its default is not shown"


def listed(command: click.Group, path: str) -> list[tuple[str, str]]:
    """The commands that the help of a group lists, in its order, each with its line, as 80 columns show it."""
    context = click.Context(command, info_name=path, terminal_width=80)
    lines = command.get_help(context).split("Commands:\n")[1].splitlines()
    rows = [line.strip().split(maxsplit=1) for line in lines if line.strip()]
    return [(row[0], row[1]) for row in rows]
