"""Shared parts of both commands: flags from dataclasses, one-line errors with an exit code, JSON output."""

from __future__ import annotations

import atexit
import gc
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from finetune.entry.signals import stoppable, stopped_exit_code
from finetune.entry.streams import usable_streams
from finetune.errors import FewtuneError, InputError
from finetune.hub.address import is_address, needs_folder, parse_address
from finetune.options.fields import Options, flag, used_by, value_type
from finetune.options.help_text import HelpfulOption, Interrupted
from finetune.options.suggestions import CHOICES, COMMANDS, suggestion
from finetune.processes import keep_freed_memory, share_cores
from finetune.progress import Display
from finetune.ranks.launched import first_process
from finetune.terminal import printable, reason_of

# New objects between two garbage collections. Imports make a million objects that stay; with Python's default of a few
# hundred, collections take a fifth of the import time.
NEW_OBJECTS = 10_000


class ChoiceOption(click.Choice[str]):
    """A choice, upper or lower case. The error for another value suggests a choice."""

    def __init__(self, choices: Sequence[str]):
        super().__init__(choices, case_sensitive=False)

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        return super().get_invalid_choice_message(value, ctx) + _did_you_mean(
            suggestion(str(value), self.choices, CHOICES)
        )


class NumberOrWord(click.ParamType[Any]):
    """A number, or `word`. Other text is passed on to the options, whose error message is better."""

    def __init__(self, kind: type, word: str):
        self.kind, self.word = kind, word
        self.name = f"{kind.__name__}|{word}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.word if str(value).casefold() == self.word else self.kind(value)
        except ValueError:
            return value


as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout, and nothing else.")
on_device = click.option(
    "--device",
    type=ChoiceOption(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device to compute on. auto uses a CUDA GPU where there is one.",
)
on_devices = click.option(
    "--devices",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of processes that train together on this machine, each on a GPU or on a share of the cores. With "
    "torchrun or srun, leave it out.",
)
existing = click.Path(exists=True, path_type=Path)


class RunArgument(click.Path):
    """The argument RUN: a folder of this machine, or an address of the hub where a command changes nothing.

    Args:
        hub: Whether addresses are taken. The error for one says otherwise how to get a folder.
    """

    def __init__(self, *, hub: bool = True):
        super().__init__(exists=True, path_type=Path)
        self.hub = hub

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; for an address, its text."""
        if not is_address(value):
            return super().convert(value, param, ctx)
        address = parse_address(value)
        if not self.hub:
            raise InputError(needs_folder(address))
        return str(address)


any_run, local_run = RunArgument(), RunArgument(hub=False)

Command = Callable[..., Any]


def hyper_parameters(options: type[Options], command: str | None = None) -> Callable[[Command], Command]:
    """Decorator: one flag for each field of `options` that the command uses.

    Args:
        options: The dataclass.
        command: Name of the command, such as "probe"; None for the one that the dataclass is made for.
    """

    def attached(function: Command) -> Command:
        for option in reversed(used_by(options, command)):
            choices, word = option.metadata["choices"], option.metadata["word"]
            name, kind = flag(option.name), value_type(options, option.name)
            if kind is bool:
                name = f"{name}/{flag('no_' + option.name)}"
            attach = click.option(
                name,
                option.name,
                type=ChoiceOption(choices) if choices else NumberOrWord(kind, word) if word else kind,
                cls=HelpfulOption,
                default=option.default,
                show_default=option.metadata["unset"] if option.default is None else True,
                help=option.metadata["about"],
                metavar=option.metadata["metavar"],
                section=option.metadata["section"],
            )
            function = attach(function)
        return function

    return attached


def run_command(cli: click.Command, name: str) -> None:
    """Run a command.

    Errors of the project become one line on stderr and an exit code. SIGINT (Ctrl-C), SIGTERM and SIGHUP stop it with
    one line and the exit codes 130, 143 and 129.
    """
    keep_freed_memory()
    share_cores()
    # Pillow logs what it refuses in a TIFF file, and Python prints what nothing handles. The error says why.
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    gc.set_threshold(NEW_OBJECTS)
    atexit.register(gc.freeze)  # no last collection at exit
    with stoppable(name) as signals:
        code = _full_output(name, lambda: _ran(cli, name))
        # Another process than the first ends with 0: its launcher would end the first one, which may still save.
        if signals.received is not None and code == 0 and first_process():
            code = signals.exit_code
        signals.work_is_done(code)
    if code:
        sys.exit(code)


def _full_output(name: str, run: Callable[[], int]) -> int:
    """The exit code of `run`; 2 with one line where stdout cannot take the result, as on a full disk."""
    try:
        with usable_streams():
            code = run()
    except OSError as error:
        with usable_streams():
            click.echo(f"{name}: {error.filename or 'stdout'}: {error.strerror or error}", err=True)
        return InputError.exit_code
    return code


def _ran(cli: click.Command, name: str) -> int:
    """The exit code of the command, which has said why it is not 0."""
    try:
        cli.main(prog_name=name, standalone_mode=False)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except click.exceptions.NoArgsIsHelpError as error:  # a group without a command; the message is its help text
        click.echo(error.format_message())
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        _say(f"{name}: {printable(' '.join(_message(error).split()))}{hint}")
        return error.exit_code
    except FewtuneError as error:
        _say(f"{name}: " + "\n".join(map(printable, error.lines)))
        return error.exit_code
    except OSError as error:
        click.echo(printable(f"{name}: {error.filename or 'the system'}: {error.strerror or error}"), err=True)
        return InputError.exit_code
    except (MemoryError, ImportError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        _say(printable(f"{name}: too little memory ({reason_of(error)}); close other programs, or allow it more"))
        return InputError.exit_code
    except (KeyboardInterrupt, Interrupted, click.Abort):
        kept = "; what the run had kept is there for --resume" if sys.argv[1:2] in (["fit"], ["train"]) else ""
        _say(f"{name}: stopped{kept}")
        return stopped_exit_code()
    return 0


def _lacks_memory(error: Exception) -> bool:
    """Whether Python, torch, or the loader of shared libraries got no memory."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "allocate memory" in said or "failed to map segment" in said


def _say(line: str) -> None:
    """Print on stderr; of several processes, the first one alone."""
    if first_process():
        click.echo(line, err=True)


def _message(error: click.ClickException) -> str:
    """The error message, with a suggestion for an unknown command or option."""
    context, command = getattr(error, "ctx", None), getattr(error, "command_name", None)
    if isinstance(error, click.NoSuchOption) and context is not None:
        options = [name for option in context.command.params for name in (*option.opts, *option.secondary_opts)]
        meant = suggestion(error.option_name, [name for name in options if name.startswith("--")])
    elif command is not None and context is not None:
        meant = suggestion(command, context.command.commands, COMMANDS)
    else:
        return error.format_message()
    return error.message + _did_you_mean(meant)


def _did_you_mean(meant: str | None) -> str:
    return "" if meant is None else f" Did you mean {meant}?"


def display_for(quiet: bool) -> Display:
    """A display on stderr, or a silent one."""
    return Display(None if quiet else Console(stderr=True))


def print_json(value: Any) -> None:
    """Print one line of JSON on stdout."""
    click.echo(json.dumps(value, allow_nan=False))
