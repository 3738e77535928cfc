"""The one pass that reads every file: its hash, whether it can be read, and its activations in a frozen backbone."""

from __future__ import annotations

from contextlib import ExitStack

from lightning_fabric import Fabric

from finetune.activation_cache import ActivationCache
from finetune.activation_families import family_of
from finetune.activations import cached
from finetune.config import Config
from finetune.data.folder import Listing
from finetune.data.images import Content
from finetune.data.loader import Pictures, in_order, worker_count
from finetune.data.transforms import Normalized, Preprocessing, evaluation_view
from finetune.fastest import Fastest
from finetune.frozen import CPU_BATCH, Outputs, run_over
from finetune.models.pooled import PooledStages
from finetune.progress import Display


def read_pictures(fabric: Fabric, stages: PooledStages, listing: Listing, config: Config, display: Display) -> Outputs:
    """Pooled activations of every stage, (n, 1, sum of widths), of the pictures that can be read.

    What an earlier run has kept of the same backbone and the same pictures is not computed again.
    """
    preprocessing = stages.backbone.preprocessing
    paths = [listing.root / sample.path for sample in listing.samples]
    pictures = Pictures(
        paths, evaluation_view(preprocessing), preprocessing.shortest_side, config.max_pixels, fingerprints=True
    )
    module = Normalized(stages, preprocessing).eval()
    run = Fastest(
        fabric,
        module,
        lambda: pictures.batch(range(min(CPU_BATCH, len(pictures)))).pixels,
        pictures=len(pictures),
        precision=config.precision,
        announce=display.say,
    )
    with ExitStack() as stack:
        advance = stack.enter_context(display.bar("reading", len(paths)))
        disk = None if config.cache else 0
        cache = stack.enter_context(ActivationCache(disk=disk, announce=display.say))

        def compute(missing: Pictures) -> Outputs:
            run.prepare()
            return run_over(
                fabric.device, lambda pixels: run(pixels)[:, None], missing, workers=config.workers, advance=advance
            )

        family = family_of(
            fabric,
            module,
            pictures,
            preprocessing,
            backbone=stages.backbone.name,
            cut="stages",
            runtime=run.name,
        )
        return cached(cache, family, pictures, compute, workers=config.workers, advance=advance).outputs()


def read_contents(
    listing: Listing, preprocessing: Preprocessing, config: Config, display: Display
) -> dict[int, Content]:
    """What `read_pictures` says of every picture, by index, without a network run over them."""
    paths = [listing.root / sample.path for sample in listing.samples]
    view, side = evaluation_view(preprocessing), preprocessing.shortest_side
    pictures = Pictures(paths, view, side, config.max_pixels, fingerprints=True)
    workers = worker_count(config.workers, len(pictures), beside_cpu=False)
    contents: dict[int, Content] = {}
    with display.bar("reading", len(paths)) as advance:
        for batch in in_order(pictures, batch_size=CPU_BATCH, workers=workers):
            contents |= batch.contents
            advance(len(batch), "")
    return contents
