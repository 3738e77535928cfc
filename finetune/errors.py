"""The errors a user can meet, each one clear line.

FewtuneError                 everything this project raises on purpose
├── InputError               a file, folder or option that cannot be used: says which and what to do
│   └── UnreadablePicture    one picture that cannot be decoded
└── TrainingDiverged         the loss stopped being a number: says at which step and the likely cause
"""

from __future__ import annotations


class FewtuneError(Exception):
    """Base of every error that the project raises on purpose; commands exit with `exit_code`.

    Args:
        message: One line.
        details: Further lines, such as the files that it is about.

    Example:
        >>> from finetune import FewtuneError, load
        >>> try:
        ...     load("nowhere")
        ... except FewtuneError as error:
        ...     print(error.exit_code)
        2
    """

    exit_code = 1

    def __init__(self, message: str = "", *details: str):
        super().__init__("\n".join((message, *details)))
        self.lines = (message, *details)


class InputError(FewtuneError):
    """A file, folder or option that cannot be used; the message names it and says what to do.

    Example:
        >>> from finetune import InputError, load
        >>> try:
        ...     load("nowhere")
        ... except InputError as error:
        ...     print(error)
        nowhere...
    """

    exit_code = 2


class UnreadablePicture(InputError):
    """One picture that cannot be decoded. `source` names it, `reason` says why in a few words.

    Example:
        >>> from finetune import UnreadablePicture, load
        >>> (answer,) = load("runs/photos", device="cpu").predict_all(["missing.png"])
        >>> isinstance(answer, UnreadablePicture), answer.reason
        (True, 'no such file')
    """

    def __init__(self, source: str, reason: str):
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # The default would rebuild it from the one formatted message and fail between processes.
        return type(self), (self.source, self.reason)


class TrainingDiverged(FewtuneError):
    """The loss stopped being a finite number; the message says at which step and the likely cause.

    Example:
        >>> from finetune import TrainingDiverged
        >>> TrainingDiverged("the training loss became nan at step 3").exit_code
        1
    """
