"""What is said of a stage that could not say itself how it ended."""

from __future__ import annotations

import errno
import signal

import pytest

from pipeline.worker import sentences

LOG = "; its log shows the last steps."


@pytest.mark.parametrize(
    ("code", "killed", "said"),
    [
        (-signal.SIGKILL, False, "Somebody, or another program, killed this stage (SIGKILL); retry it."),
        (
            -signal.SIGKILL,
            True,
            "The kernel ended this stage because memory ran out (it had taken 2.5 GB). Retry it when the"
            " machine is less busy, or start a new run with a smaller score.rows or score.general_blocks.",
        ),
        (-signal.SIGSEGV, None, f"This stage crashed (Segmentation fault){LOG}"),
        (errno.ENOSPC, None, "The disk is full; free some space in the home folder and retry."),
        (1, None, f"This stage ended without saying why{LOG}"),
        (None, None, f"This stage ended without saying why{LOG}"),
    ],
)
def test_a_death_is_one_sentence(code: int | None, killed: bool | None, said: str) -> None:
    assert sentences.death("score", code, killed, 2_500_000_000) == said


def test_where_nobody_knows_memory_is_only_likely() -> None:
    said = sentences.death("publish-1", -signal.SIGKILL, None, 10**9)
    assert said.startswith(
        "The system killed this stage, most likely because memory ran out (it had taken 1.0 "
    )
    assert said.endswith("with a smaller batch_size or max_length, or with gradient_checkpointing on.")


def test_an_interruption_says_what_a_retry_does() -> None:
    assert "stopped 3 times while this ran" in sentences.interrupted(3)
    assert sentences.interrupted(3).endswith("Retry resumes it.")
    assert sentences.interrupted_publish().endswith("and if not, publish again.")
