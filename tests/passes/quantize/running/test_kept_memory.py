"""Memory that is freed while layers are quantized is not asked of the system again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipeline import settings

pytestmark = pytest.mark.chain

COUNT = """
import json, resource
from contextlib import nullcontext
import torch
from pipeline.passes.quantize.running.kept_memory import kept_memory

def pages(way):
    with way():
        torch.ones(1 << 20)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(50):
            torch.ones(1 << 20)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

held = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
first, kept, small = pages(nullcontext), pages(kept_memory), held()
with kept_memory():
    several = [torch.ones(1 << 20) for _ in range(25)]
    del several
    large = held()
print(json.dumps([first, kept, large - small, held() - small]))
"""


def test_blocks_are_kept_meanwhile_and_given_back_at_the_end() -> None:
    environment = settings.stage_environment(False)
    environment.pop("THP_MEM_ALLOC_ENABLE")  # else a new block is a few large pages
    done = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fresh, kept, meanwhile, after = json.loads(done.stdout)
    assert fresh > 40 * 1024  # 50 blocks of 1,024 pages
    assert kept < fresh / 4  # few, for pieces that fit nothing
    assert meanwhile > 60 << 20
    assert after < 20 << 20
