"""Parquet, a few rows at a time. Only a process of its own reads it: it may crash, or take any memory."""

from __future__ import annotations

from pathlib import Path

from pipeline import display
from pipeline.inputs.data.formats.limits import (
    MOST_COLUMNS,
    TIMES,
    UNPACKED,
    EndsHereError,
    Rows,
    too_many_columns,
)

MAGIC = b"PAR1"
TOGETHER = 128  # rows
MOST_ROWS = 50_000_000
FEW_ROWS = 100_000  # larger tables have no more rows than bytes, unless all are alike
_INDEX = "__index_level_"  # pandas' row numbers, which nobody has written


def rows(path: Path) -> Rows:
    """The rows by their number. Raises EndsHereError where they are damaged, or far more than the file."""
    import pyarrow as arrow
    from pyarrow import parquet

    arrow.set_memory_pool(arrow.system_memory_pool())  # others reserve more than they use, which is limited
    number = 0
    most = max(UNPACKED, TIMES * path.stat().st_size)
    try:
        with parquet.ParquetFile(path) as file:
            _look(file.metadata.num_columns, file.metadata.num_rows, path.stat().st_size)
            names = [name for name in file.schema_arrow.names if not name.startswith(_INDEX)]
            if len(set(names)) < len(names):
                raise EndsHereError("two columns of the table have the same name; rename one", 1)
            for batch in file.iter_batches(TOGETHER, columns=names, use_threads=False):
                most -= batch.nbytes
                if most < 0:
                    raise EndsHereError(_larger(path), number + 1)
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (MemoryError, arrow.ArrowMemoryError, arrow.ArrowCapacityError):
        raise EndsHereError(
            "the next rows take far more memory than a row may; give a file with shorter texts", number + 1
        ) from None
    except KeyError as error:  # of what Python knows of time zones
        zone = display.value(error.args[0] if error.args else "")
        raise EndsHereError(
            f"a column of times has the time zone {zone}, which is not known here; leave that column out, or"
            " write it as text", number + 1,
        ) from None  # fmt: skip
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
        said = display.line(" ".join(str(error).split()), 100)  # a library's words, with bytes of the file
        raise EndsHereError(f"the Parquet file is damaged or cut off ({said})", number + 1) from None


def _look(columns: int, rows: int, size: int) -> None:
    if columns > MOST_COLUMNS:
        raise EndsHereError(too_many_columns(columns), 1)
    if rows > MOST_ROWS:
        raise EndsHereError(f"the table has {rows:,} rows; allowed: {MOST_ROWS:,}. Give a part of it", 1)
    if rows > max(FEW_ROWS, size):
        raise EndsHereError(f"the Parquet file of {size:,} bytes holds {rows:,} rows; give a part of it", 1)


def _larger(path: Path) -> str:
    size = path.stat().st_size
    return (
        f"the Parquet file of {size:,} bytes holds more than {max(UNPACKED, TIMES * size):,} bytes of rows;"
        " give a part of it"
    )
