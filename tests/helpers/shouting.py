"""A program that prints what it is given, in the ways in which libraries print."""

from __future__ import annotations

import logging
import sys

if __name__ == "__main__":
    assert sys.argv[0].endswith("shouting.py"), "as `-m` has it"
    assert sys.modules["__main__"].__dict__ is globals()
    logging.getLogger().addHandler(logging.StreamHandler())
    logging.warning("module %s", sys.argv[1])
    print(sys.argv[1])
    print(sys.argv[1], file=sys.stderr)
