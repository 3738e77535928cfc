"""config.json of a run as a dataclass: which options, pictures and software made it, and what its classifier needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from msgspec import Meta

from finetune.config import Config
from finetune.data.transforms import Preprocessing
from finetune.errors import InputError
from finetune.files.exchange import settled
from finetune.files.reading import as_type, read_json
from finetune.strategies import check_strategies

FORMAT = 1
CONFIG_FILE = "config.json"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """config.json of a run. A run that has not finished lacks what describes its classifier: classes is then None.

    config: the options, by name; see `options`. asked: those that were given with another value, such as
    `backbone="auto"`, which config has as the run resolved them. folder, table: of the pictures. made_with: device,
    precision, versions.
    """

    format: int
    config: dict[str, str | int | float | bool | None]
    asked: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    folder: str | None = None
    table: str | None = None
    classes: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None
    preprocessing: Preprocessing | None = None
    temperature: Annotated[float, Meta(ge=1e-3, le=1e3)] = 1.0
    highest_stage: str | None = None
    strategy: str | None = None
    kept: str | None = None
    made_with: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Any, source: str = CONFIG_FILE) -> Self:
        """The content of config.json, checked. InputError, naming `source` and the field, for anything else."""
        if isinstance(values, Mapping) and values.get("format") != FORMAT:
            raise InputError(f"{source} has format {values.get('format')}, this version reads {FORMAT}")
        found = as_type(values, cls, source)
        try:
            found.options()
        except InputError as error:
            raise InputError(f"{source} may be damaged: {error}") from error
        return found

    def __post_init__(self) -> None:
        check_strategies(strategy=self.strategy, kept=self.kept)
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name is there twice")

    def options(self) -> Config:
        """The options that this version knows. InputError for one that has a wrong value."""
        known = {option.name for option in dataclasses.fields(Config)}
        return Config.from_dict({name: value for name, value in self.config.items() if name in known})


def read_run_config(folder: Path) -> RunConfig:
    """config.json of a run folder. InputError where there is none, or it is damaged."""
    path = settled(folder) / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{folder} is not a run folder: it has no {CONFIG_FILE}")
    return RunConfig.from_dict(read_json(path), str(path))
