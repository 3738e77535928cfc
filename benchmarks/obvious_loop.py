"""The loop that people write to turn pictures into vectors, as a program of its own: timm, PIL, DataLoader, eager.

    python benchmarks/obvious_loop.py NETWORK WEIGHTS VECTORS < PATHS

Nothing of this project takes part, so that nothing of it speeds the loop up or slows it down. PATHS: a path a line;
WEIGHTS: a safetensors file, or "" for random weights; VECTORS: the .npy file to write. Prints the pictures per second
of the loop alone, without imports and loading.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Files(Dataset[Tensor]):
    def __init__(self, paths: list[str], transform: object):
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))  # type: ignore[operator,no-any-return]


def main() -> None:
    network, weights, out = sys.argv[1:]
    paths = sys.stdin.read().splitlines()
    torch.manual_seed(0)
    model = timm.create_model(network, num_classes=0)
    if weights:
        model.load_state_dict(load_file(weights), strict=False)
    model.eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    loader = DataLoader(Files(paths, transform), batch_size=32, num_workers=len(os.sched_getaffinity(0)))
    started = time.perf_counter()
    with torch.no_grad():
        vectors = torch.cat([F.normalize(model(batch), dim=1) for batch in loader])
    print(len(paths) / (time.perf_counter() - started))
    np.save(out, vectors.numpy())


if __name__ == "__main__":
    main()
