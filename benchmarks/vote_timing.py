"""Whether the time in which a row of the blind vote is answered tells which side is A.

    python -m benchmarks.vote_timing [--rows 100] [--turns 20]

The page runs in a process and a home of its own, over a run whose base and adapter gave answers of the same
length. Each row is asked for in every turn, in a new order, as a browser does. Seconds are compared between
rows on which A is the base and those on which it is the adapter: a curious voter would have these, and more
of them than anybody asks for. Their ranks are tested (Mann-Whitney, both sides), turn by turn apart from
what the machine does, by each row's median.
"""

from __future__ import annotations

import argparse
import http.client
import random
import statistics
import tempfile
import time
from pathlib import Path
from urllib.parse import quote, urlsplit

from scipy import stats

from benchmarks import page_stream
from pipeline.evaluation.examples.answered_by import BASE
from pipeline.runs.voting import ballots, blind_rows
from pipeline.store import Store
from tests.helpers import examples

VOTER = "curious"
LETTERS = 400  # of each answer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--turns", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        run = planted(Store(home), given.rows)
        asked_base = is_base_first(Store(home), run)
        with page_stream.served(home) as page:
            seconds = asked(page.url, run, [*asked_base], given.turns)
    base, adapter = (
        [statistics.median(seconds[row]) for row, is_base in asked_base.items() if is_base == wanted]
        for wanted in (True, False)
    )
    chance = float(stats.mannwhitneyu(base, adapter).pvalue)
    print(f"rows with the base as A: {len(base)}, with the adapter: {len(adapter)}, {given.turns} turns")
    print(f"median {1000 * statistics.median(base):.3f} and {1000 * statistics.median(adapter):.3f} ms,")
    print(
        f"ratio {statistics.median(base) / statistics.median(adapter):.3f}; by chance alone in {chance:.2f}"
    )


def planted(store: Store, count: int) -> str:
    """A run that recorded so many answers; its id."""
    told = examples.rows(count)
    answers = [
        examples.answer(*row[:2], *(word * (LETTERS // 5) for word in ("base ", "with "))) for row in told
    ]
    run: str = examples.measured(store, told, answers)
    return run


def is_base_first(store: Store, run: str) -> dict[int, bool]:
    """By number of the row, whether the voter's A is the base."""
    rows = blind_rows.load(blind_rows.recorded(store.get(run))).asked
    key = ballots.secret(store.folder(run))
    who, _ = ballots.person(VOTER)
    return {row.number: blind_rows.sides(key, row, who)[0] == BASE for row in rows}


def asked(address: str, run: str, rows: list[int], turns: int) -> dict[int, list[float]]:
    """Seconds of each turn by row, over one connection."""
    server = http.client.HTTPConnection(urlsplit(address).netloc)
    found: dict[int, list[float]] = {row: [] for row in rows}
    for _ in range(turns):
        for row in random.sample(rows, len(rows)):
            started = time.perf_counter()
            server.request("GET", f"/votes/{run}.json?voter={quote(VOTER)}&row={row}")
            answer = server.getresponse()
            text = answer.read()
            found[row].append(time.perf_counter() - started)
            if answer.status != http.client.OK:
                raise SystemExit(f"The page answered {answer.status}: {text[:200]!r}")
    return found


if __name__ == "__main__":
    main()
