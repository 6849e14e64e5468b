"""Runs: find, annotate, compare and delete runs, and see one in detail."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from pipeline import display
from pipeline.errors import LabError
from pipeline.evaluation.examples import rows
from pipeline.inputs.data import telling
from pipeline.publish import zip_file
from pipeline.runs import cached_models, disk, history
from pipeline.store.run import ENDED, RETRYABLE, Run
from pipeline.worker import loop
from webapp import local_models
from webapp.handler_values import number, picked, ticked
from webapp.home import known_run, store
from webapp.routes.watch import watch
from webapp.tabs.comparing import comparison as comparison_panel
from webapp.tabs.comparing import judged
from webapp.ui import check_turns, parts, views

DELETED = "deleted"
SHOWN = [
    ("All", ""), ("Waiting", "queued"), ("Running", "running"), ("Done", "done"), ("Failed", "failed"),
    ("Canceled", "canceled"), ("Interrupted", "interrupted"), ("Deleted, to restore", DELETED),
]  # fmt: skip
EMPTY = "No matching runs. Search for something else, or show all."
NONE_DELETED = "There are no deleted runs to restore: a deleted run is gone for good after a day."


class Runs(NamedTuple):
    """Components that app.py connects with other tabs."""

    chosen: gr.Textbox
    view: gr.Button
    use: gr.Button
    compared: gr.Textbox
    examples: gr.HTML
    judged: judged.Judged


def listed(
    text: str, shown: str, tag: str | None, owner: str | None, checked: str, ticks: int = 0, run: str = ""
) -> tuple[Any, ...]:
    """The matching runs as a table, and the tags and owners to filter by.

    `ticks` is how often a box had been clicked at the time of the request.
    """
    there = watch().history(shown == DELETED)
    status = "" if shown == DELETED else shown
    found = history.search(there, text, status, tag or "", owner or "")
    empty = NONE_DELETED if shown == DELETED and not there else EMPTY if there else ""
    table = views.history(found, empty=empty, checked=checked.split(",") if checked else [], picked=run)
    owners = history.owners(there)
    tags = [("All", ""), *((name, name) for name in history.tags(there))]
    owned = gr.update(choices=[("All", ""), *((name, name) for name in owners)], visible=len(owners) > 1)
    return {**table, "ticks": ticks}, gr.update(choices=tags), owned


def check(event: gr.EventData) -> tuple[str, Any, int]:
    """Remember the checked runs; two or more can be compared."""
    return *_checked(ticked(event)), number(event, "ticks")


def _checked(ids: list[str]) -> tuple[str, Any]:
    label = f"Compare {len(ids)} runs" if len(ids) > 1 else "Compare"
    return ",".join(ids), gr.update(value=label, interactive=len(ids) > 1)


def select(event: gr.EventData) -> tuple[Any, ...]:
    """Show the selected run with its notes and tags."""
    return shown(picked(event))


def shown(run: str) -> tuple[Any, ...]:
    """Show a run with its notes and tags."""
    found = known_run(run)
    return found.id, *details(found.id), found.notes, ", ".join(found.tags), None, None


def details(run: str) -> tuple[Any, ...]:
    """Everything recorded about a run: the panel, its title, stages, recipe and available actions."""
    found = known_run(run)
    gone = found.deleted is not None
    deleted = f"Deleted {display.moment(found.deleted)}; it can be restored for a day."
    note = deleted if gone else _error(found) or found.verdict
    return (
        gr.update(visible=True),
        {"text": f"{found.name} · {found.id}", "note": note, **_worse(found, note)},
        views.stages(found),
        views.recipe_yaml(found.recipe),
        gr.update(interactive=found.status not in ENDED),
        gr.update(interactive=found.status in RETRYABLE and not gone),
        gr.update(interactive=zip_file.exported(found) is not None),
        gr.update(interactive=found.status in ENDED, visible=not gone),
        gr.update(visible=gone),
    )


def _worse(run: Run, note: str) -> dict[str, str]:
    """What leads from a verdict to the rows that the adapter is worse on."""
    if not run.worse or note != run.verdict:
        return {}
    rows = "the row" if run.worse == 1 else f"the {run.worse:,} rows"
    return {"action": f"See {rows} it is worse on", "id": run.id}


def takes(run: str) -> list[list[str]]:
    """What the selected run takes on disk; separate, because that reads its folders."""
    return views.storage(disk.of(store(), known_run(run).id))


def told(run: str) -> tuple[dict[str, Any], dict[str, str] | None]:
    """The selected run, for the links to its report, and for the table of its examples if it has any."""
    found = known_run(run)
    report = {"run": found.id, "exported": zip_file.exported(found) is not None}
    return report, {"run": found.id} if rows.of_run(found).any else None


def worse(run: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The same, with only the examples that its adapter is worse on."""
    report, shown = told(run)
    # `at` differs, so that they are shown each time.
    return report, shown and {**shown, "worse": True, "at": time.time()}


def retry(run: str) -> Iterator[tuple[Any, ...]]:
    """Queue the selected run again and show its new state. A model that is not here is looked up before."""
    try:
        if model := local_models.to_look_up(known_run(run)):
            gr.Info("Asking what the model of this run is…")
            yield from check_turns.steps(
                lambda tell: telling.ended(cached_models.looking(model), tell),
                lambda _: (gr.skip(),) * len(details(run)),
            )
        store().retry(run)
        loop.ensure(store().home)
    except LabError as error:
        gr.Warning(str(error))
    yield details(run)


def save(run: str, notes: str, tags: str) -> tuple[Any, Any]:
    """Save notes and tags of a run: a confirmation, or problems."""
    try:
        found = known_run(run)
        # Save only what changed, so that two requests at once don't undo each other's changes.
        new_notes = notes if notes != found.notes else None
        new_tags = tags.split(",") if tags != ", ".join(found.tags) else None
        if new_notes is None and new_tags is None:
            return gr.skip(), None
        history.annotate(store(), found.id, new_notes, new_tags)
    except LabError as error:
        return None, views.problems("Not saved", error)
    return {"text": "Saved.", "kind": "good"}, None


def ask_delete(run: str) -> dict[str, Any]:
    """The question before a run is deleted."""
    found = known_run(run)
    freed = display.size(disk.of(store(), found.id).freed)
    notes = [
        f"{found.id}: {freed} will be freed a day from now; until then it can be restored.",
        "Published copies stay, and so do results that other runs use.",
    ]
    return views.question(f"Delete {found.name}?", notes, "Delete", found.id)


def delete(event: gr.EventData, checked: str) -> tuple[Any, ...]:
    """Delete a run: a notice with an undo button, the panel closed, and the runs still checked."""
    run = picked(event)
    ids, button = _checked([one for one in checked.split(",") if one and one != run])
    try:
        found = known_run(run)
        store().delete(found.id)
    except LabError as error:
        return {"text": str(error), "kind": "bad"}, gr.skip(), checked, gr.skip()
    text = f"{found.name} is deleted."
    return _notice(text, action="Undo", id=run), gr.update(visible=False), ids, button


def undo(event: gr.EventData) -> tuple[Any, ...]:
    """Undo the deletion in the notice."""
    return restore(picked(event))


def restore(run: str) -> tuple[Any, ...]:
    """Restore a deleted run: a notice, and the panel closed. It may be gone for good by now."""
    try:
        found = known_run(run)
    except LabError:
        return {"text": f"Run {display.short(run)} is gone: a day has passed.", "kind": "bad"}, gr.update(
            visible=False
        )
    store().restore(found.id)
    return _notice(f"{found.name} is back."), gr.update(visible=False)


def ask_free() -> dict[str, Any]:
    """The question before space is freed."""
    unused, total = disk.unused(store()), disk.total(store().home)
    parts = ", ".join(f"{word} {display.size(taken)}" for word, taken in total.items() if taken)
    home = f"The home takes {display.size(sum(total.values()))}: {parts}."
    if not unused.results and not unused.datasets:
        return views.question(
            "There is nothing to free.",
            ["Every result and dataset is used by a run, or was used within an hour.", home],
            "",
        )
    notes = [f"Results that no run uses, nor a deleted one that can be restored: {len(unused.results)}."]
    if unused.datasets:
        notes.append(f"Datasets that no run uses: {', '.join(unused.datasets)}.")
    freed = f"Free {display.size(unused.bytes)}"
    return views.question(f"{freed}?", [*notes, "This cannot be undone.", home], freed)


def free() -> dict[str, Any]:
    """Free space that no run uses."""
    try:
        freed = disk.collect(store())
    except (LabError, OSError) as error:
        return {"text": views.problems("", error)["items"][0], "kind": "bad"}
    count = len(freed.results) + len(freed.datasets)
    return _notice(f"{display.size(freed.bytes)} were freed: {count} folders that no run used.")


def _notice(text: str, **more: str) -> dict[str, Any]:
    return {"text": text, "kind": "good", **more}


def _error(run: Run) -> str:
    return next((stage.error for stage in run.stages if stage.error), "")


class _Search(NamedTuple):
    """The inputs of the search."""

    text: gr.Textbox
    shown: gr.Dropdown
    tag: gr.Dropdown
    owner: gr.Dropdown


def _search() -> _Search:
    with gr.Row(elem_classes="fields"):
        return _Search(
            gr.Textbox(label="Search", placeholder="Name, model, dataset, tags, notes", elem_id="runs-find",
                       scale=3, min_width=240),
            gr.Dropdown(SHOWN, value="", label="Show", elem_id="runs-shown", min_width=160),
            gr.Dropdown([("All", "")], value="", label="Tag", elem_id="runs-tag", min_width=140),
            gr.Dropdown([("All", "")], value="", label="Owner", elem_id="runs-owner", min_width=140,
                        visible=False),
        )  # fmt: skip


class _Written(NamedTuple):
    """The inputs for notes and tags."""

    notes: gr.Textbox
    tags: gr.Textbox
    saved: gr.HTML
    problems: gr.HTML


def _written() -> _Written:
    with gr.Row(elem_classes="fields"):
        notes = gr.Textbox(label="Notes", info="Kept when you leave the field", lines=2, max_lines=12,
                           elem_id="runs-notes", scale=3, min_width=320)  # fmt: skip
        tags = gr.Textbox(label="Tags", info="Joined by commas", max_lines=1, elem_id="runs-tags", scale=2,
                          min_width=240)  # fmt: skip
    saved = parts.drawn("notice", elem_id="runs-saved")
    return _Written(notes, tags, saved, parts.drawn("problems", elem_id="runs-problems"))


class _Details(NamedTuple):
    """The panel of the selected run."""

    panel: gr.Column
    title: gr.HTML
    view: gr.Button
    use: gr.Button
    take: gr.Button
    stop: gr.Button
    again: gr.Button
    remove: gr.Button
    back: gr.Button
    space: gr.HTML
    written: _Written
    stages: gr.HTML
    report: gr.HTML
    judged: judged.Judged
    examples: gr.HTML
    recipe: gr.Code


def _details() -> _Details:
    with gr.Column(visible=False, elem_id="run-details") as panel:
        title = parts.drawn("notice")
        with gr.Row(elem_classes="bar"):
            view = gr.Button("Open in the Lab", size="sm", variant="primary", elem_id="runs-open", scale=0)
            use = gr.Button("Use this recipe", size="sm", scale=0, elem_id="runs-use")
            take = gr.Button("Download the model", size="sm", scale=0, elem_id="runs-download")
            stop = gr.Button("Cancel", size="sm", scale=0, elem_id="runs-cancel")
            again = gr.Button("Retry", size="sm", scale=0)
            remove = gr.Button("Delete…", size="sm", scale=0, elem_id="runs-delete")
            back = gr.Button("Restore", size="sm", scale=0, elem_id="runs-restore", visible=False)
        space = parts.drawn("facts", elem_id="runs-storage")
        written = _written()
        stages = parts.drawn("table")
        report = parts.drawn("reports", module="examples.js", elem_id="runs-report")
        against = judged.build()
        shown = parts.drawn("examples", module="examples.js", elem_id="runs-examples")
        recipe = gr.Code(
            label="Recipe",
            language="yaml",
            interactive=False,
            wrap_lines=True,
            show_line_numbers=False,
            buttons=["copy"],
        )
    return _Details(
        panel,
        title,
        view,
        use,
        take,
        stop,
        again,
        remove,
        back,
        space,
        written,
        stages,
        report,
        against,
        shown,
        recipe,
    )


def build(tab: gr.Tab) -> Runs:
    """Lay out the tab."""
    search = _search()
    with gr.Row(elem_classes="bar"):
        compare = gr.Button(
            "Compare", size="sm", variant="primary", interactive=False, elem_id="runs-compare", scale=0
        )
        refresh = gr.Button("Refresh", size="sm", elem_id="runs-refresh", scale=0)
        space = gr.Button("Free space…", size="sm", elem_id="runs-free", scale=0)
    notice = parts.drawn("notice", elem_id="runs-notice")
    table = parts.drawn("table", elem_id="runs-table")
    chosen, checked = (
        gr.Textbox(visible="hidden", elem_classes=parts.HIDDEN, label=label)
        for label in ("Selected run", "Checked runs")
    )
    ticks = gr.Number(0, visible="hidden", elem_classes=parts.HIDDEN, label="Clicks on boxes", precision=0)
    whether_delete, whether_free = (parts.drawn("question") for _ in range(2))
    compared = comparison_panel.build()
    of = _details()

    asked: list[Any] = [*search, checked, ticks, chosen]
    found = [table, search.tag, search.owner]
    panel = [of.panel, of.title, of.stages, of.recipe, of.stop, of.again, of.take, of.remove, of.back]
    # By default an event is dropped while the one before it is running. Here, listing is repeated once at the
    # end, and every selected row and every saved text counts.
    look = {"fn": listed, "inputs": asked, "outputs": found, "trigger_mode": "always_last", **parts.QUICK}
    tab.select(**{**look, "trigger_mode": "multiple"})  # repeated once, everything the tab does would be
    refresh.click(**look)
    gr.on([search.text.change, *(s.input for s in search[1:])], **look)
    table.check(check, None, [checked, compare, ticks], trigger_mode="multiple", **parts.QUICK)
    table.select(
        select, None, [chosen, *panel, *of.written], trigger_mode="multiple", **parts.QUICK
    ).then(takes, chosen, of.space, trigger_mode="always_last", **parts.QUICK).then(
        told, chosen, [of.report, of.examples], trigger_mode="always_last", **parts.QUICK
    ).then(judged.offer, chosen, [*of.judged], trigger_mode="always_last", **parts.QUICK)  # fmt: skip
    _connect_examples(of, chosen, panel)
    of.title.select(worse, chosen, [of.report, of.examples], trigger_mode="always_last", **parts.QUICK)
    compare.click(comparison_panel.compare, checked, compared.shown, **parts.CHECKS)
    _connect_run(of, chosen, panel, look)
    of.remove.click(ask_delete, chosen, whether_delete, **parts.QUICK)
    whether_delete.select(delete, checked, [notice, of.panel, checked, compare], **parts.QUICK).then(**look)
    notice.select(undo, None, [notice, of.panel], **parts.QUICK).then(**look)
    of.back.click(restore, chosen, [notice, of.panel], **parts.QUICK).then(**look)
    space.click(ask_free, None, whether_free, **parts.LOOKS)
    whether_free.select(free, None, notice, **parts.LOOKS)
    return Runs(chosen, of.view, of.use, compared.named, of.examples, of.judged)


def _connect_examples(of: _Details, chosen: gr.Textbox, panel: list[Any]) -> None:
    """Links that lead to a run's examples, and the choice of another run to judge it against."""
    for name, examples in (("worse", worse), ("judged", told)):
        see = gr.Button("See", visible="hidden", elem_classes=parts.HIDDEN, elem_id=f"runs-see-{name}")
        named = gr.Textbox(visible="hidden", elem_classes=parts.HIDDEN, label="Run to see")
        seen = see.click(
            shown, named, [chosen, *panel, *of.written], js=parts.live("seenRun"), trigger_mode="multiple",
            **parts.QUICK,
        ).then(takes, chosen, of.space, trigger_mode="always_last", **parts.QUICK).then(
            examples, chosen, [of.report, of.examples], trigger_mode="always_last", **parts.QUICK
        )  # fmt: skip
        if name == "worse":
            seen.then(judged.offer, chosen, [*of.judged], trigger_mode="always_last", **parts.QUICK)
        else:
            pair = [chosen, named]
            seen.then(judged.again, pair, [*of.judged], js=parts.live("seenPair"), **parts.CHECKS)
    of.judged.picker.input(
        judged.judge,
        [chosen, of.judged.picker],
        of.judged.drawing,
        trigger_mode="always_last",
        **parts.CHECKS,
    )


def _connect_run(of: _Details, chosen: gr.Textbox, panel: list[Any], look: dict[str, Any]) -> None:
    """What is done with the selected run; `look` lists the runs after it."""
    of.take.click(None, chosen, None, js=parts.live("take"), **parts.IN_PAGE)
    of.view.click(None, chosen, None, js=parts.live("open"), **parts.IN_PAGE)
    of.stop.click(None, chosen, None, js=parts.live("cancel"), trigger_mode="multiple", **parts.IN_PAGE).then(
        details, chosen, panel, **parts.QUICK
    ).then(**look).then(None, chosen, None, js=parts.live("canceled"), **parts.IN_PAGE).then(
        details, chosen, panel, **parts.QUICK
    ).then(**look)
    of.again.click(retry, chosen, panel, **parts.CHECKS).then(**look)
    written = of.written
    left = [written.notes.blur, written.tags.blur, written.tags.submit]
    gr.on(
        left, save, [chosen, *written[:2]], written[2:], trigger_mode="multiple", **parts.QUICK
    ).then(**look)  # fmt: skip
