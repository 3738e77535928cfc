from __future__ import annotations

import pytest
import torch

from finetune.computing.threads import SMALL, one_thread_if_small


@pytest.mark.parametrize(("numbers", "threads"), [(SMALL - 1, 1), (SMALL, 3)])
def test_a_small_problem_gets_one_thread_and_the_count_is_restored(numbers: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_thread_if_small(numbers):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
