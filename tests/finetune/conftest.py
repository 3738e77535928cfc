from __future__ import annotations

import pytest
import torch

from finetune.models.backbone import Backbone


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone("fewtune_conv4").eval()
