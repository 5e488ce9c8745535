"""The processes of a launcher, and how they wait for one of them that has long work to do alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from .asking import Processes

PATIENCE = timedelta(days=14)
"""Longer than any measuring. A process that dies ends the waiting: its connections close."""


@contextmanager
def patience() -> Iterator[None]:
    """At the end of the block every process waits for all others, without collectives' time-out.

    A collective, as a barrier is, fails after `ddp_timeout` (1,800 s unless it is set; ten minutes
    where nobody sets it). A group of its own, over the CPU, waits as long as it takes. Every
    process must enter the block. Alone it does nothing.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        yield
        return
    group: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
    yield
    dist.barrier(group)
    dist.destroy_process_group(group)


class LaunchedProcesses(Processes):
    """The processes that `accelerate launch` or `torchrun` has started.

    They share one disk, through which their answers meet.
    """

    def __init__(self) -> None:
        import torch
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        state = PartialState(
            cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        )
        self.index, self.count, self.device = (
            state.process_index,
            state.num_processes,
            str(state.device),
        )

    def wait(self) -> None:
        with patience():  # one may have had longer answers to write than another
            pass
