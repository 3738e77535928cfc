"""The loop of PyTorch's transfer learning tutorial, as a program of its own: a frozen network run again every epoch.

    python benchmarks/tutorial_loop.py NETWORK WEIGHTS FOLDER EPOCHS [--top STAGES]

FOLDER holds train/ and val/. The classifier learns by SGD on random crops and mirror images, as in the tutorial's
"ConvNet as fixed feature extractor"; with --top the last so many blocks learn, too. Nothing of this project takes part.
Prints, as JSON, the seconds of every epoch, validation included, and the accuracy on val/ after each.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("weights")
    parser.add_argument("folder")
    parser.add_argument("epochs", type=int)
    parser.add_argument("--top", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(0)
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    seen = {
        "train": [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()],
        "val": [transforms.Resize(256), transforms.CenterCrop(224)],
    }
    data = {
        split: ImageFolder(
            os.path.join(args.folder, split), transforms.Compose([*steps, transforms.ToTensor(), normalize])
        )
        for split, steps in seen.items()
    }
    workers = len(os.sched_getaffinity(0))
    loaders = {
        split: DataLoader(data[split], batch_size=32, shuffle=split == "train", num_workers=workers) for split in data
    }
    model: Any = timm.create_model(args.network, num_classes=len(data["train"].classes))
    model.load_state_dict(
        {name: tensor for name, tensor in load_file(args.weights).items() if not name.startswith("classifier")},
        strict=False,
    )
    for parameter in model.parameters():
        parameter.requires_grad = False
    learning = [model.get_classifier(), *(model.blocks[len(model.blocks) - args.top :] if args.top else [])]
    for module in learning:
        for parameter in module.parameters():
            parameter.requires_grad = True
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    seconds, accuracy = [], []
    for _ in range(args.epochs):
        started = time.perf_counter()
        right = 0
        for split, loader in loaders.items():
            model.train(split == "train")
            for pictures, labels in loader:
                optimizer.zero_grad()
                with torch.set_grad_enabled(split == "train"):
                    outputs = model(pictures)
                    loss = nn.functional.cross_entropy(outputs, labels)
                if split == "train":
                    loss.backward()
                    optimizer.step()
                else:
                    right += int((outputs.argmax(1) == labels).sum())
        schedule.step()
        seconds.append(time.perf_counter() - started)
        accuracy.append(right / len(data["val"]))
    print(json.dumps({"seconds": seconds, "accuracy": accuracy}))


if __name__ == "__main__":
    main()
