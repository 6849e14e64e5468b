"""What is chosen or uploaded while an earlier choice is still answered is answered too."""

from __future__ import annotations

from tests.webapp.test_who_waits import named
from webapp.app import page

CHOICES = {"input", "upload", "change"}


def test_no_choice_is_left_out_because_an_earlier_one_is_answered() -> None:
    # Gradio leaves out what happens while an event of the mode "once" runs: the page would go on to show the
    # answer for the choice before.
    read = [
        fn
        for fn in page().fns.values()
        if fn.fn and fn.inputs and CHOICES & {event for _, event in fn.targets}
    ]
    assert len(read) > 10
    assert [named(fn.fn) for fn in read if fn.trigger_mode == "once"] == []
