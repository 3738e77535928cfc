"""A page for each exported name, from its docstring."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType

# Bases whose members are documented elsewhere.
BASES = "Exception, tuple, Module"


def packages() -> tuple[ModuleType, ...]:
    import fewshot
    import finetune

    return finetune, fewshot


def write_name_pages(folder: Path) -> None:
    """Write `folder`/PACKAGE.NAME.md for every exported name."""
    import finetune

    folder.mkdir(parents=True, exist_ok=True)
    for package in packages():
        for name in package.__all__:
            thing = getattr(package, name)
            full = f"{package.__name__}.{name}"
            # No page of the navigation: a list of all names on every page would take most of the time of a build.
            lines = ["---", "orphan: true", "---", "", f"# `{full}`", "", "```{eval-rst}"]
            lines += [f".. currentmodule:: {package.__name__}", ""]
            if inspect.isclass(thing):
                lines += [f".. autoclass:: {full}", "   :members:"]
                if any(base.__module__.startswith("sklearn") for base in thing.__mro__):
                    # scikit-learn's own members refer to its documentation.
                    made = [f"set_{name}_request" for name in ("fit", "partial_fit", "predict", "score", "transform")]
                    lines.append(f"   :exclude-members: {', '.join(made)}")
                else:
                    lines.append(f"   :inherited-members: {BASES}")
            else:
                lines += [f".. autofunction:: {full}"]
            if package.__name__ == "fewshot" and name in finetune.__all__ and thing is getattr(finetune, name):
                lines.append("   :no-index:")
            (folder / f"{full}.md").write_text("\n".join([*lines, "```", ""]), encoding="utf-8")


def linked(table: str) -> str:
    """api.md with a link from each name of its tables to its page."""
    package = ""
    lines = []
    for line in table.splitlines():
        package = line.removeprefix("## ") if line.startswith("## ") else package
        lines.append(re.sub(r"^\| (`(\w+)(?:\(\))?`) \|", rf"| [\1](generated/names/{package}.\2.md) |", line))
    return "\n".join([*lines, ""])


def plain(full: str) -> str:
    """The page of a name as Markdown without directives: signatures and docstrings."""
    package, name = full.split(".")
    thing = getattr(next(each for each in packages() if each.__name__ == package), name)
    parts = [f"# `{full}`", "", "```", signature(name, thing), "```", "", docstring(thing)]
    if inspect.isclass(thing):
        for other, member in inspect.getmembers(thing):
            documented = inspect.isroutine(member) or isinstance(member, property)
            if other.startswith("_") or not documented or not inspect.getdoc(member):
                continue
            parts += ["", f"## `{name}.{other}`", "", "```", signature(other, member), "```", "", docstring(member)]
    return "\n".join(parts) + "\n"


def docstring(thing: object) -> str:
    return f"```text\n{inspect.getdoc(thing) or ''}\n```"


def signature(name: str, thing: object) -> str:
    try:
        return f"{name}{inspect.signature(thing)}"  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return name
