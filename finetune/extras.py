"""Packages that only some jobs need: the extra that installs them, and one sentence where they are missing."""

from __future__ import annotations

from importlib.util import find_spec

from finetune.errors import InputError

# The modules that each extra of pyproject.toml installs for the code here.
MODULES = {
    "app": ("fastapi", "uvicorn", "python_multipart"),
    "explain": ("captum",),
    "export": ("onnx", "onnxscript"),
    "heic": ("pillow_heif",),
    "lance": ("lance",),
    "lance-ray": ("lance", "lance_ray", "ray"),
    "ray": ("ray", "pyarrow"),
    "search": ("faiss",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}


def installed(extra: str) -> bool:
    """Whether the modules of an extra can be found. None is imported."""
    return all(find_spec(module) is not None for module in MODULES[extra])


def check_extra(extra: str, what: str) -> None:
    """InputError where a module of an extra is missing. A job calls it before its work begins.

    Args:
        extra: Key of MODULES.
        what: What needs it, such as "--engine ray", the subject of the sentence.
    """
    if not installed(extra):
        raise InputError(needs(extra, what))


def needs(extra: str, what: str) -> str:
    """The sentence for a missing extra."""
    return f"{what} needs a package that is missing: pip install 'fewtune[{extra}]'"
