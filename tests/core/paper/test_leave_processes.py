"""A process that `accelerate launch` started ends its talk with the others before the interpreter ends."""

import os
import subprocess
import sys

import pytest

from lightbox.paper import entries

TALK = """
import sys
import torch.distributed as dist
from lightbox.paper.entries import leave_processes
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 1), rank=0, world_size=1)
leave_processes()
print(dist.is_initialized())
leave_processes()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("world", "is_open"), [("2", "False"), ("1", "True")])
def test_the_group_of_a_launch_is_closed_and_no_other(world, is_open, tmp_path):
    """The group of one process stands for that of several; WORLD_SIZE is what a launch sets."""
    env = os.environ | {"WORLD_SIZE": world}
    done = subprocess.run(
        [sys.executable, "-c", TALK, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=env,
    )
    assert (done.returncode, done.stdout.split()[-1]) == (0, is_open), done.stderr  # gloo prints before


def test_it_is_left_after_a_refusal_too(monkeypatch):
    left = []
    monkeypatch.setattr(entries, "leave_processes", lambda: left.append(True))
    with pytest.raises(SystemExit):
        entries.Entries("medthink").train(["no.such.key=1"])
    assert left == [True]
