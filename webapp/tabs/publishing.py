"""What the places on the Publish tab have in common: the dry run, and to queue a publishing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pipeline.errors import LabError
from pipeline.publish import targets
from pipeline.runs import submit
from webapp.home import store
from webapp.tabs import azure
from webapp.ui import check_turns, choices, form, views


def check(
    to: str,
    asking: dict[str, Any],
    ask: Callable[[str, dict[str, Any]], dict[str, Any]],
    inputs: form.Form,
    run: str | None,
    *values: Any,
) -> Iterator[tuple[Any, ...]]:
    """The dry run: problems, a summary, findings and files. `ask` finds out by a run's id and the options;
    `asking` is shown meanwhile."""
    try:
        given = inputs.collect(values)[to]
        found = choices.run(store(), run)
        options = targets.options_of(to, given)
        planned = yield from check_turns.steps(
            lambda tell: submit.plan(store(), found, to, options), lambda text: (None, asking, None, None)
        )
        shown = (None, asking, None, azure.files(planned))
        yield shown
        told = yield from check_turns.steps(lambda tell: ask(found.id, given), lambda text: shown)
    except (LabError, OSError) as error:
        yield views.problems(azure.REFUSED, error), None, None, None
        return
    yield None, azure.summary(told), azure.findings(told["findings"]), azure.files(planned)


def publish(to: str, inputs: form.Form, run: str | None, *values: Any, **more: Any) -> tuple[Any, ...]:
    """Queue the publishing and have the page follow it, `more` told with it: the outputs of `check`, and the
    stage."""
    try:
        found = choices.run(store(), run)
        options = targets.options_of(to, inputs.collect(values)[to])
        stage = submit.publish(store(), found, to, options)
    except (LabError, OSError) as error:
        return views.problems(azure.REFUSED, error), *(None,) * 4
    return *(None,) * 4, {"run": found.id, "stage": stage, **more}
