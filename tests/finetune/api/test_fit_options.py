"""The keywords of `fit` are the options of `Config`: by name and type for editors, in words for help(fit)."""

from __future__ import annotations

import dataclasses
import inspect
import os
import typing

from finetune import Config, fit
from finetune.api.fit_options import FitOptions
from finetune.options.fields import described


def test_every_option_is_a_typed_keyword_of_fit() -> None:
    (options,) = [
        parameter for parameter in inspect.signature(fit).parameters.values() if parameter.kind is parameter.VAR_KEYWORD
    ]
    assert options.annotation == "Unpack[FitOptions]"
    expected = typing.get_type_hints(Config)
    for field in dataclasses.fields(Config):
        if field.metadata["choices"]:
            expected[field.name] = typing.Literal[field.metadata["choices"]] | str
    for name in ("weights", "weights_dir", "unlabelled", "background"):
        expected[name] = str | os.PathLike[str] | None
    assert list(FitOptions.__annotations__) == [field.name for field in dataclasses.fields(Config)]
    assert typing.get_type_hints(FitOptions) == expected


def test_help_of_fit_lists_every_option_with_its_default() -> None:
    shown = " ".join((inspect.getdoc(fit) or "").split())
    for line in described(Config):
        assert line in shown, line
    assert "label_smoothing: Share of the target probability" in shown
    assert "Default: 0.05." in shown
