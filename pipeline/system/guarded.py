"""`python -m pipeline.system.guarded MODULE WORDS`: a module as `-m` runs it, guarded before anything prints.

`own_process` starts so whatever inherits an output of ours: see `terminal_guard`. Elsewhere nothing changes.
"""

from __future__ import annotations

import runpy
import sys


def _main() -> None:
    if any(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr)):
        from pipeline.system import terminal_guard

        terminal_guard.guard()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
