"""What is imported ahead of stages can be forked, and is what stages need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import settings

REAL = """
import ctypes, json, os, sys, tempfile, warnings
from pathlib import Path
from pipeline import settings
from pipeline.worker.ahead import forking
from pipeline.worker.ahead import warm

warnings.simplefilter("error", DeprecationWarning)  # that a process with threads forks
warm.prepare_all()
import numpy, scipy.linalg, torch
facts = {"threads": forking.threads(), "cuda": torch.cuda.is_initialized()}
# But for a cache that is kept, nothing that the end of a fork could remove.
facts["files"] = [name for name in os.listdir(tempfile.gettempdir()) if "inductor" not in name]
blas = forking._loaded("openblas")[0]
hears, tells = os.pipe()
for turn in range(2):
    if not os.fork():
        settings.become({name: os.environ[name] for name in os.environ if name not in settings._ONE_THREAD})
        warm._be_itself()
        assert warm.can_fork()
        drawn = [float(numpy.random.rand()), float(torch.rand(()))]
        forking.use_all_cores()
        matrix = numpy.ones((500, 500))
        threads = forking.threads()
        ones = torch.ones(500, 500)
        same = bool((matrix @ matrix == 500).all() and (ones @ ones == 500).all())
        os.write(tells, json.dumps([drawn, threads, same]).encode() + b"\\n")
        os._exit(0)
    os.wait()
with os.fdopen(hears) as pipe:
    facts["forks"] = [json.loads(pipe.readline()) for _ in range(2)]
print(json.dumps(facts))
"""


@pytest.mark.chain
def test_what_stages_need_can_be_imported_without_a_thread_and_forked(tmp_path: Path) -> None:
    environment = {**settings.stage_environment(False), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", REAL], env=settings.roomy(environment), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert (facts["threads"], facts["cuda"], facts["files"]) == (1, False, [])
    (one, threads, same), (other, *_) = facts["forks"]
    assert one[0] != other[0]
    assert one[1] != other[1]
    assert same
    alone = "import os, numpy, scipy.linalg; print(len(os.listdir('/proc/self/task')))"
    started = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=True)
    assert threads == int(started.stdout)


# What all stages need is imported once; what each needs besides, in a process that has nothing of the others.
IMPORTED = """
import importlib, os, sys
from pipeline.stages.all_stages import STAGES
from pipeline.stages.execute import import_torchmetrics
from pipeline.worker.ahead import warm

warm.without_bitsandbytes()
import_torchmetrics()
for module in warm.ALL:
    importlib.import_module(module)
print("scipy.signal" in sys.modules)
for stage in STAGES:
    child = os.fork()
    if not child:
        warm.prepare(stage)
        os._exit(0)
    print(stage, os.waitpid(child, 0)[1])
import scipy.signal
print(scipy.signal.windows.hamming(3)[1])
"""


@pytest.mark.chain
def test_what_is_imported_ahead_can_be_imported_and_is_no_more_than_needed() -> None:
    from pipeline.stages.all_stages import STAGES

    done = subprocess.run(
        [sys.executable, "-c", IMPORTED],
        env=settings.roomy(settings.child_environment()), capture_output=True, text=True,
    )  # fmt: skip
    stages = [f"{stage} 0" for stage in STAGES]
    assert done.stdout.splitlines() == ["False", *stages, "1.0"], done.stderr
