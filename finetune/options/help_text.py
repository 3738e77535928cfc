"""Help texts: commands in the order of use, options under headings."""

from __future__ import annotations

from typing import Any

import click

# Default heading of options.
MAIN = "Options"


class Interrupted(BaseException):
    """KeyboardInterrupt, on its way through click."""


class HelpfulOption(click.Option):
    """An option that `--help` shows under the heading `section`."""

    def __init__(self, *names: Any, section: str = MAIN, **settings: Any):
        super().__init__(*names, **settings)
        self.section = section


class HelpfulCommand(click.Command):
    """A command whose help lists options under headings, in the order of their declaration."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {MAIN: []}
        for option in self.get_params(ctx):
            row = option.get_help_record(ctx) if isinstance(option, click.Option) else None
            if row is not None:
                sections.setdefault(getattr(option, "section", MAIN), []).append(row)
        for heading, rows in sections.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


class InOrderOfUse(click.Group):
    """A group that lists its commands in the order of their addition."""

    command_class = HelpfulCommand

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. click would print an empty line for a KeyboardInterrupt."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error
