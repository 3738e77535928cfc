"""The report of a run inside a notebook: in a frame of its own, in which no script runs and nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from finetune.errors import InputError
from finetune.terminal import printable

# Largest page that is shown. Reports have 1 to 3 MB.
MOST_BYTES = 32 << 20
_STYLE = "width:100%;height:40em;border:1px solid rgba(127,127,127,.5);border-radius:6px"
# The base makes links to places of the page stay in it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_BEFORE = f'<!doctype html><base href="about:srcdoc"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'


@dataclass(frozen=True)
class ReportPage:
    """A page in a file, which a notebook shows in a frame. path: Of report.html."""

    path: Path

    def _repr_html_(self) -> str:
        """The frame. InputError where the file is missing or too large."""
        try:
            size = self.path.stat().st_size
            if size > MOST_BYTES:
                raise InputError(f"{self.path} has {size:,} bytes, and at most {MOST_BYTES:,} are shown in a notebook")
            page = self.path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be read: {error.strerror}; write it with finetune report RUN"
            ) from error
        name = escape(printable(f"Report of {self.path.parent.name}"))
        return f'<iframe sandbox title="{name}" style="{_STYLE}" srcdoc="{escape(_BEFORE + page)}"></iframe>'
