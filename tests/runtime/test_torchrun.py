"""What processes take from the environment that torchrun, or a cluster, gives them."""

import logging
import os
from argparse import Namespace

import pytest
import torch.distributed as dist
from torch.distributed import run as torchrun

from maskdm.engine.sharing import start_processes
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.processes import started_processes
from maskdm.runtime.torchrun import MARK, own_number


def test_a_rank_counts_within_torchrun_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")  # of a machine, as a cluster numbers them
    monkeypatch.delenv(MARK, raising=False)
    assert own_number("RANK") == 0
    monkeypatch.setenv(MARK, "1")
    assert own_number("RANK") == 3
    assert own_number("LOCAL_RANK") == 0


def test_processes_of_one_machine_need_neither_its_name_nor_the_options_of_a_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Namespace] = []
    monkeypatch.setattr(torchrun, "run", asked.append)
    monkeypatch.setattr(logging, "disable", lambda: None)
    monkeypatch.setattr(os, "environ", os.environ | {"PET_NNODES": "2", "PET_MAX_RESTARTS": "3"})
    assert start_processes(2, "maskdm.engine.stages", ["pretrain"]) == 0
    (options,) = asked
    assert (options.nnodes, options.nproc_per_node, options.max_restarts) == ("1:1", "2", 0)
    assert options.local_addr == "127.0.0.1"


def test_processes_that_do_not_reach_each_other_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at device.cc:84] Unable to find address for: eth99\nframe #0: ...")

    monkeypatch.setattr(dist, "init_process_group", unreachable)
    for name, value in {MARK: "1", "RANK": "0", "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "eth99"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MaskDMError) as caught, started_processes():
        pass
    assert "Unable to find address for: eth99; GLOO_SOCKET_IFNAME (eth99); allowed: " in str(caught.value)
