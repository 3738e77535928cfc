"""Transfer learning that measures what it has and picks its own strategy."""

from finetune.classifier import Classifier as Classifier
from finetune.classifier import Prediction as Prediction
from finetune.classifier import load as load
from finetune.config import Config as Config
from finetune.errors import FewtuneError as FewtuneError
from finetune.errors import InputError as InputError
from finetune.errors import TrainingDiverged as TrainingDiverged
from finetune.errors import UnreadablePicture as UnreadablePicture
from finetune.evaluation import evaluate as evaluate
from finetune.fit import fit as fit

__all__ = [
    "Classifier",
    "Config",
    "FewtuneError",
    "InputError",
    "Prediction",
    "TrainingDiverged",
    "UnreadablePicture",
    "evaluate",
    "fit",
    "load",
]
