"""20-way episodes a second: drawn and scored on the device of the vectors, with the generator of the CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fewshot.evaluation.episodes import Scores, arrange, sample, score_episodes
from gpu_rows.setting import Setting, seconds_of

CLASSES, EACH, WIDTH, ASKED = 1692, 20, 256, 1e5


def measure(setting: Setting) -> dict[str, Any]:
    device, count = setting.device(), setting.of_size(400_000, 2000)
    classes = setting.of_size(CLASSES, 60)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, WIDTH, generator=generator).repeat_interleave(EACH, 0)
    vectors = F.normalize(centres + 2 * torch.randn(centres.shape, generator=generator), dim=1)
    labels = torch.arange(classes).repeat_interleave(EACH)

    def scored(device: torch.device, count: int) -> Scores:
        pool = arrange(labels).to(device)
        drawn = sample(pool, count, way=20, shot=1, generator=torch.Generator().manual_seed(1))
        return score_episodes(on[device], drawn)

    cpu = torch.device("cpu")
    on = {device: vectors.to(device), cpu: vectors}
    seconds = seconds_of(lambda: scored(device, count), device)
    same = min(count, 20_000)
    ours, theirs = scored(device, same).credit, scored(cpu, same).credit
    agrees = {
        "episodes": same,
        "share_of_equal_answers": float((ours == theirs).float().mean()),
        "difference_of_accuracy": float((ours.double().mean() - theirs.double().mean()).abs()),
    }
    rate = count / seconds
    measured = {"episodes": count, "seconds": seconds, "episodes_per_second": round(rate), "vectors": len(vectors)}
    reached = rate >= ASKED and agrees["difference_of_accuracy"] < 1e-4
    return setting.row("20-way 1-shot, drawn and scored: at least 100,000 episodes a second", reached, measured, agrees)
