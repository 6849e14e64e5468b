"""`python -m pipeline.passes.finetune.rank FOLDER RANK`: a further process of a training, see `further`.

It takes part in all steps, and writes nothing down but its log and why it failed.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import sentence
from pipeline.passes.finetune import further
from pipeline.stages import finetune
from pipeline.system import own_process
from pipeline.system.files import write_whole


def main(folder: Path, rank: int) -> int:
    """Train along with the process that has started this one; return 0 when that is done."""
    task = json.loads((folder / further.TASK).read_text("utf-8"))
    own_process.end_with(task["parent"])
    settings.report_to(Path(os.devnull))  # events are the first process's
    try:
        _train(task, folder, rank)
    except BaseException as error:
        traceback.print_exc()
        write_whole(further.error(folder, rank), sentence(error, "finetune", finetune.SMALLER))
        return 1
    return 0


def _train(task: dict[str, Any], folder: Path, rank: int) -> None:
    from pipeline.passes.finetune import quant_lora  # after `end_with`: it takes seconds
    from pipeline.passes.finetune.ranks import Ranks

    quant_lora.train_along(task, Ranks(rank, task["count"], folder, further.ready(folder, rank).touch))


if __name__ == "__main__":
    settings.quiet_this_process()
    code = main(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    os._exit(code)  # nothing is left to do, and libraries would wait for processes that have ended
