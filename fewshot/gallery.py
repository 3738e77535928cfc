"""The place that saved `RecognizerClassifier`s of earlier versions name for their gallery."""

from __future__ import annotations

from fewshot.recognition.gallery import Gallery

__all__ = ["Gallery"]
