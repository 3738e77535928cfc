"""Checks of tensors from files: names, shapes, number formats and finite values, before they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from finetune.errors import InputError
from finetune.terminal import in_one_line

# Number formats of weights and vectors.
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# The computation is in float32, so a larger number of a wider format becomes infinite.
_LARGEST = torch.finfo(torch.float32).max


def check_tensor(
    tensors: Mapping[str, Tensor],
    name: str,
    shape: Sequence[int | None],
    source: str,
    *,
    formats: Sequence[torch.dtype] = FLOATING,
    finite: bool = True,
) -> Tensor:
    """One tensor of a file, checked.

    Args:
        tensors: What `read_tensors` gave.
        name: Of the tensor.
        shape: Its shape; None for any length.
        source: Name of the file, for the error.
        formats: Number formats that it may have.
        finite: Whether NaN and infinite values are refused.

    Returns:
        The tensor.

    Raises:
        InputError: If it is missing or differs. The message names `source` and the tensor.
    """
    tensor = tensors.get(name)
    if tensor is None:
        raise InputError(f"{source} may be damaged: {name} is missing")
    lengths = zip(tensor.shape, shape, strict=False)
    if tensor.ndim != len(shape) or any(wanted not in (None, length) for length, wanted in lengths):
        wanted = "x".join("n" if length is None else str(length) for length in shape) or "a number"
        raise InputError(f"{source} may be damaged: {name} is {size_of(tensor)}, not {wanted}")
    if tensor.dtype not in formats:
        names = " or ".join(map(_format, formats))
        raise InputError(f"{source} may be damaged: {name} holds {_format(tensor.dtype)}, not {names}")
    problem = unusable(tensor) if finite else None
    if problem is not None:
        raise InputError(f"{source} may be damaged: {name} {problem}")
    return tensor


def check_fits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], problem: str) -> None:
    """InputError, which begins with `problem`, where tensors cannot replace others of the same names.

    Weights may have any floating-point format, other tensors only the expected one. Formats and values are only looked
    at where names and shapes fit.
    """
    if found := list(_misfits_of_forms(tensors, expected) or _misfits_of_values(tensors, expected)):
        raise InputError(f"{problem}: {listed(found)}")


def unusable(tensor: Tensor, *, floating: bool = True, finite: bool = True) -> str | None:
    """Why a tensor's values cannot be used: no plain memory, no floating-point format, or not finite. Else None.

    floating, finite: whether other formats, and NaN and infinite values, are refused. Complex numbers always are.
    """
    if tensor.layout != torch.strided or tensor.is_quantized:
        return "is not a plain array of numbers"
    if tensor.is_meta:
        return "has no values"
    if tensor.is_complex() or (floating and tensor.dtype not in FLOATING):
        return f"holds {_format(tensor.dtype)}, not floating-point numbers"
    # A view that repeats its memory can claim any size.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"claims {size_of(tensor)} values and holds fewer"
    if finite and tensor.dtype in FLOATING and tensor.numel():
        lowest, highest = (float(end) for end in torch.aminmax(tensor.detach()))
        if not (lowest >= -_LARGEST and highest <= _LARGEST):  # NaN compares as false
            return "has values that are not finite"
    return None


def listed(problems: Sequence[str]) -> str:
    """The first three problems, and how many there are beside them."""
    return "; ".join(map(in_one_line, problems[:3])) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")


def size_of(tensor: Tensor) -> str:
    """A shape in words: "3x4"."""
    return "x".join(map(str, tensor.shape)) or "a number"


def _misfits_of_forms(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    found = [f"{name} is missing" for name in expected if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            found.append(f"{name} is not in the model")
        elif tensor.shape != expected[name].shape:
            found.append(f"{name} is {size_of(tensor)}, the model's is {size_of(expected[name])}")
    return found


def _misfits_of_values(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[str]:
    for name, tensor in tensors.items():
        wanted = expected[name].dtype
        if not wanted.is_floating_point and tensor.dtype != wanted:
            yield f"{name} holds {_format(tensor.dtype)}, not {_format(wanted)}"
        elif (problem := unusable(tensor, floating=wanted.is_floating_point)) is not None:
            yield f"{name} {problem}"


def _format(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
