"""Torch's compiler, which libraries import at their start, imported by a command only where it compiles."""

from __future__ import annotations

import sys
from functools import wraps
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

TYPE_CHECKING = False  # importing typing takes longer than everything else here
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

COMPILER = "torch._dynamo"
# Modules that import the compiler for a name each, which nothing uses before a model is compiled.
_IMPORTERS = (
    "torchvision.ops.roi_align",
    "torchvision.tv_tensors",
    "timm.models.naflexvit",
    "lightning_fabric.wrappers",
)


class DeferredCompiler:
    """Finds the modules that import the compiler, a second of a command's start, and gives them stand-ins.

    A module that needs more of the compiler than the stand-ins have is run again with the compiler itself.
    """

    def __init__(self, importers: Sequence[str] = _IMPORTERS):
        self.importers = importers

    @classmethod
    def install(cls) -> None:
        """For the whole process, which must be that of a command: a library changes no import of its user."""
        sys.meta_path.insert(0, cls())

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.importers or COMPILER in sys.modules:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        import_module("torch")
        stand_ins = _stand_ins()
        sys.modules.update(stand_ins)
        try:
            super().exec_module(module)
        except (ImportError, AttributeError):
            _remove(stand_ins)
            super().exec_module(module)
        finally:
            _remove(stand_ins)


def _stand_ins() -> dict[str, ModuleType]:
    compiler, tools = ModuleType(COMPILER), ModuleType(f"{COMPILER}.utils")
    vars(compiler).update(disable=_disable, OptimizedModule=_OptimizedModule, utils=tools)
    vars(tools).update(is_compile_supported=_is_compile_supported)
    return {COMPILER: compiler, f"{COMPILER}.utils": tools}


def _remove(stand_ins: dict[str, ModuleType]) -> None:
    for name, stand_in in stand_ins.items():
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


def _disable(function: Callable[..., Any] | None = None, *options: Any, **named: Any) -> Any:
    """torch._dynamo.disable, applied at the first call of the function."""
    if function is None:
        return lambda function: _disable(function, *options, **named)
    made: list[Callable[..., Any]] = []

    @wraps(function)
    def call(*values: Any, **more: Any) -> Any:
        if not made:
            made.append(import_module(COMPILER).disable(function, *options, **named))
        return made[0](*values, **more)

    return call


def _is_compile_supported(device: str) -> bool:
    return bool(import_module(f"{COMPILER}.utils").is_compile_supported(device))


class _OfCompiler(type):
    def __instancecheck__(cls, thing: object) -> bool:
        compiler = sys.modules.get(COMPILER)  # nothing is compiled before its import
        return compiler is not None and isinstance(thing, compiler.OptimizedModule)


class _OptimizedModule(metaclass=_OfCompiler):
    """torch._dynamo.OptimizedModule, for isinstance."""
