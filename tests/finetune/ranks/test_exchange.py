from __future__ import annotations

from pathlib import Path

import pytest
import torch
from several import several

from finetune.errors import InputError
from finetune.ranks.exchange import GlobalBatchNorm, gathered_rows, mirrored_share, share
from finetune.ranks.group import Ranks
from finetune.ranks.start import joined


@pytest.mark.parametrize("n", [0, 1, 5, 32])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_picture_of_a_batch_has_one_rank_and_mixup_finds_its_partner_there(n: int, size: int) -> None:
    assert [position for rank in range(size) for position in share(n, rank, size)] == list(range(n))
    mirrored = [mirrored_share(n, rank, size) for rank in range(size)]
    assert sorted(position for part in mirrored for position in part) == list(range(n))
    assert all(part[::-1] == [n - 1 - position for position in part] for part in mirrored)


def _batch() -> tuple[torch.Tensor, torch.nn.BatchNorm2d]:
    torch.manual_seed(0)
    return torch.randn(5, 3, 4, 4) * 3 + 7, torch.nn.BatchNorm2d(3)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [(3, 2), (5, 0)])
def test_batch_norm_and_rows_of_two_processes_are_those_of_the_whole_batch(
    parts: tuple[int, int], tmp_path: Path
) -> None:
    pixels, norm = _batch()
    pixels.requires_grad_()
    expected = norm(pixels)
    expected.pow(3).sum().backward()
    gradient = pixels.grad
    assert gradient is not None

    def check(rank: int) -> None:
        with joined("cpu") as ranks:
            assert ranks is not None
            whole, own = _batch()
            mine = whole.split(parts)[rank].clone().requires_grad_()
            with GlobalBatchNorm():
                found = own(mine)
            rows = gathered_rows(found, parts)
            assert torch.allclose(rows, expected, atol=1e-5)
            (rows.pow(3).sum() / 2).backward()  # both ranks have the same loss, and gradients add up
            assert torch.allclose(mine.grad, gradient.split(parts)[rank], rtol=1e-4, atol=1e-4)
            assert torch.allclose(own.running_var, norm.running_var)
            assert torch.allclose(own.running_mean, norm.running_mean)
            if rank > 0:
                ranks.serve()

    for code, output in several(2, tmp_path, check):
        assert (code, output) == (0, "")


def _refuse(ranks: Ranks, name: str) -> None:
    raise InputError(f"{name} cannot be read")


@pytest.mark.slow
def test_an_error_of_another_rank_is_raised_by_the_first(tmp_path: Path) -> None:
    def job(rank: int) -> None:
        try:
            with joined("cpu") as ranks:
                assert ranks is not None
                if rank > 0:
                    ranks.serve()
                with ranks.asked(_refuse, "b.png"):
                    ranks.gathered(1)
        except InputError as error:
            print(error)

    assert several(2, tmp_path, job) == [(0, "b.png cannot be read\n"), (0, "")]


def test_one_process_does_not_join_and_wrong_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as ranks:
        assert ranks is None
        assert not torch.distributed.is_initialized()
    with pytest.raises(InputError, match="at least 1"), joined("cpu", 0):
        pass
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="the launcher has started 2 processes"), joined("cpu", 3):
        pass
