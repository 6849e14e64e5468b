"""What the dry run of a publish to Azure finds without asking anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.exports.findings import Status
from pipeline.publish import checks
from pipeline.publish.azure import preflight
from pipeline.publish.azure import publisher as azureml
from pipeline.system import checksums
from tests.helpers import exports


def test_an_adapter_that_does_not_fit_the_graph_is_in_the_way(export: Path) -> None:
    (found,) = checks.fit(export)
    assert (found.check, found.status, found.message) == (
        "adapter",
        Status.OK,
        f"{exports.ADAPTER} fit the graph",
    )
    wider = {"a": exports.random(exports.WIDTH + 1, 4), "b": exports.random(4, exports.WIDTH)}
    exports.write_adapter(export / exports.ADAPTER, wider)
    checksums.write(export)
    (found,) = checks.fit(export)
    assert found.status == Status.FAILED
    assert exports.ADAPTER in found.message


def test_a_graph_without_an_adapter_is_good(export: Path) -> None:
    (export / exports.ADAPTER).unlink()
    checksums.write(export)
    (found,) = checks.fit(export)
    assert (found.status, found.message) == (Status.OK, "the graph is good; there is no adapter beside it")


@pytest.mark.parametrize(
    ("speed", "size", "status", "told"),
    [
        (None, 125e6, Status.UNKNOWN, "about a minute for the upload on a line of 100 Mbit/s"),
        ("spoilt", 125e6, Status.UNKNOWN, "about a minute for the upload on a line of 100 Mbit/s"),
        ("2000000", 1.2e9, Status.OK,
         "about 10 minutes for the upload at the 2.0 MB a second of the last upload"),
        (
            "1000000", 7.2e9, Status.OK,
            "about 2.0 hours for the upload at the 1.0 MB a second of the last upload; access ends after an"
            " hour and is renewed",
        ),
    ],
)  # fmt: skip
def test_the_time_is_that_of_the_last_upload(
    tmp_path: Path, speed: str | None, size: float, status: str, told: str
) -> None:
    if speed is not None:
        (tmp_path / azureml.SPEED).write_text(speed)
    found = preflight._time(tmp_path, int(size))
    assert (found.status, found.message) == (status, told)
