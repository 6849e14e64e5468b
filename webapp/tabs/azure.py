"""Azure AI as a place to publish to: the login, the workspace, a version's name, and the dry run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from pipeline import display
from pipeline.errors import InputError, LabError, sentence
from pipeline.exports.findings import Status
from pipeline.inputs import azure_workspace
from pipeline.inputs.azure_workspace import Place
from pipeline.inputs.options import describe
from pipeline.publish import targets
from pipeline.publish.azure import ask
from pipeline.publish.azure.login import KEY, WITHOUT_KEY
from pipeline.runs import submit
from pipeline.system.files import to_json
from webapp import uploads
from webapp.home import store
from webapp.ui import check_turns, choices, form, parts, views

TO = "azureml"
LOGINS = [
    ("Azure CLI (az login)", "cli"),
    ("Managed identity of this machine", "identity"),
    ("Service principal in the environment", "environment"),
]
WHERE = ("subscription", "resource_group", "workspace")
ABOUT = ("name", "version", "description", "tags")
ASKING = {"text": "Asking Azure… this can take a minute; you can keep working meanwhile."}
REFUSED = "Nothing was published"
AGAIN = "Publish again when you like: files already in Azure are not sent again."
WORDS = {
    Status.OK: ("done", "Good"),
    Status.FAILED: ("failed", "Blocked"),
    Status.SKIPPED: ("queued", "Skipped"),
    Status.UNKNOWN: ("queued", "Unknown"),
}
# At most this many threads of the page wait for Azure.
ASKS: dict[str, Any] = {**parts.QUEUED, "concurrency_limit": 4, "concurrency_id": "azure"}


class Azure(NamedTuple):
    """Components that the Publish tab connects."""

    column: gr.Column
    inputs: form.Form
    check: gr.Button
    go: gr.Button
    remembered: list[form.Input]


def whoami(inputs: form.Form, *values: Any) -> Iterator[tuple[Any, ...]]:
    """Who is logged in and what they may do: a notice, and facts. A login that works is remembered."""
    yield ASKING, None
    try:
        where = place_of(inputs, values)
        found = yield from check_turns.steps(
            lambda tell: ask.whoami(store().home, where), lambda text: (ASKING, None)
        )
        if where.workspace:
            azure_workspace.remember(store().home, where)
    except (LabError, OSError) as error:
        yield {"text": sentence(error), "kind": "bad"}, None
        return
    may = found.get("may")
    note = {"text": "The login works. Choose a workspace to see what it may do there."}
    if may is not None:
        lacks = [word for word, yes in may.items() if not yes and word != KEY]
        text = f"The login may not {', '.join(lacks)} in {where}; ask for the role AzureML Data Scientist."
        note = {"text": text, "kind": "bad"}
        if not lacks:
            note = {"text": f"The login may do all that publishing to {where} needs.", "kind": "good"}
            if not may[KEY]:
                note["note"] = f"{WITHOUT_KEY}."
    yield note, who(found)


def who(found: dict[str, Any]) -> list[list[str]]:
    """The facts of a login."""
    rows = [["Name", str(found["name"])], ["Tenant", str(found["tenant"])]]
    rows += [["Good for", f"{found['minutes']} minutes"]]
    return rows + [[word.capitalize(), "yes" if yes else "no"] for word, yes in found.get("may", {}).items()]


def find(login: str) -> Iterator[tuple[Any, ...]]:
    """The workspaces that a login sees, to choose from: a notice, and the choices."""
    yield ASKING, gr.skip()
    try:
        if login not in azure_workspace.LOGINS:
            raise InputError(f"login: choose one of {', '.join(azure_workspace.LOGINS)}")
        told = yield from check_turns.steps(
            lambda tell: ask.workspaces(store().home, login), lambda text: (ASKING, gr.skip())
        )
    except (LabError, OSError) as error:
        yield {"text": sentence(error), "kind": "bad"}, gr.update(visible=False)
        return
    found = told["workspaces"]
    left_out = " ".join(f"Left out: {sentence}" for sentence in told["left_out"])
    if not found:
        text = "This login sees no workspace; ask for the role AzureML Data Scientist on one."
        yield {"text": text, "note": left_out, "kind": "bad"}, gr.update(visible=False)
        return
    labels = [
        (
            f"{row['workspace']} · {row['resource_group']} · {row['subscription']}",
            to_json([row[k] for k in WHERE]),
        )
        for row in found
    ]
    text = f"The login sees {len(found)} workspace{'s' if len(found) > 1 else ''}; choose one."
    seen = gr.update(choices=labels, value=None, visible=True)
    yield {"text": text, "note": left_out, "kind": "good"}, seen


def pick(chosen: str | None) -> list[Any]:
    """Fill in the chosen workspace. Raises InputError for one that was not offered."""
    if not chosen:
        return [gr.skip()] * len(WHERE)
    try:
        found = json.loads(chosen)
    except (ValueError, TypeError, RecursionError):
        found = None
    if not isinstance(found, list) or [type(word) for word in found] != [str] * len(WHERE):
        raise InputError("Choose a workspace from the list; **Find workspaces** lists them again.")
    return found


def take_config(uploaded: str) -> tuple[Any, ...]:
    """Fill in the workspace of an uploaded config.json; the file itself is not kept."""
    path = None
    try:
        with uploads.taken(uploaded, most_bytes=azure_workspace.LARGEST_CONFIG, ending=".json") as path:
            found = azure_workspace.find(store().home, Place(), str(path))
    except (LabError, OSError) as error:
        text = sentence(error).replace(f"config: {path}", "This file")
        return {"text": text, "kind": "bad"}, *[gr.skip()] * len(WHERE)
    text = f"Workspace {found.workspace}, as the file says."
    return {"text": text, "kind": "good"}, *(getattr(found, name) for name in WHERE)


def check(inputs: form.Form, run: str | None, *values: Any) -> Iterator[tuple[Any, ...]]:
    """The dry run: problems, a summary, findings, files and the equivalent command."""
    nothing = (None, None, None)
    try:
        given = inputs.collect(values)[TO]
        found = choices.run(store(), run)
        options = targets.options_of(TO, given)
        planned = yield from check_turns.steps(
            lambda tell: submit.plan(store(), found, TO, options),
            lambda text: (None, ASKING, None, None, gr.skip()),
        )
        shown = (None, ASKING, None, files(planned), command(planned))
        yield shown
        told = yield from check_turns.steps(
            lambda tell: ask.preflight(store().home, found.id, given), lambda text: shown
        )
    except (LabError, OSError) as error:
        yield views.problems(REFUSED, error), *nothing, gr.skip()
        return
    yield None, summary(told), findings(told["findings"]), files(planned), command(planned)


def summary(told: dict[str, Any]) -> dict[str, Any]:
    """The summary of a dry run."""
    plan = told["plan"]
    bad = [row["check"] for row in told["findings"] if row["status"] == Status.FAILED]
    text = f"Version {plan['version']} of {plan['name']} in {plan['target']}: {display.size(plan['bytes'])}"
    if not bad:
        return {"text": text, "note": "All checks passed. Nothing was written.", "kind": "good"}
    return {"text": text, "note": f"Blocked: {', '.join(bad)}. Nothing was written.", "kind": "bad"}


def findings(rows: list[dict[str, str]]) -> views.Table:
    """The checks of a dry run."""
    cells = []
    for row in rows:
        status, word = WORDS[Status(row["status"])]
        cells.append([{"status": status, "word": word}, row["check"].capitalize(), row["message"]])
    return views.table(["Result", "Check", "What it says"], cells, caption="What was checked")


def files(planned: dict[str, Any]) -> views.Table:
    """The files that a version would have."""
    rows = [[file["path"], display.size(file["bytes"])] for file in planned["files"]]
    return views.table(["File", "Size"], rows)


def command(planned: dict[str, Any]) -> Any:
    """The Azure CLI command that does about the same."""
    return gr.update(value=planned["command"], visible=True)


def publish(inputs: form.Form, run: str | None, *values: Any) -> tuple[Any, ...]:
    """Queue the publishing and have the page follow it: the outputs of `check`, and the stage."""
    try:
        found = choices.run(store(), run)
        options = targets.options_of(TO, inputs.collect(values)[TO])
        planned = submit.plan(store(), found, TO, options)
        stage = submit.publish_planned(store(), found, TO, options)
    except (LabError, OSError) as error:
        return views.problems(REFUSED, error), None, None, None, gr.skip(), None
    return None, None, None, None, command(planned), {"run": found.id, "stage": stage, "again": AGAIN}


def place_of(inputs: form.Form, values: tuple[Any, ...]) -> Place:
    """The workspace of the form; empty fields are as remembered. Raises InputError."""
    options = targets.options_of(TO, inputs.collect(values)[TO])
    return targets.PUBLISHERS[TO].place_of(store().home, options)  # type: ignore[no-any-return]


def arrive(*now: Any) -> list[Any]:
    """Fill empty fields with the remembered login and workspace."""
    known = azure_workspace.recall(store().home)
    login, *rest = now
    if any(rest):
        return [gr.skip()] * len(now)
    return [known.get("login", login), *(known.get(name, "") for name in WHERE)]


def build() -> Azure:
    """Lay out the part of the tab that is about Azure."""
    inputs = form.Form()
    options = {option.name: option for option in describe(targets.PUBLISHERS[TO].Options)}

    def add(name: str, **changes: Any) -> form.Input:
        option = options.pop(name)
        made = form.component(option, "azure", **changes)
        inputs.add(TO, option, made)
        return made

    column: gr.Column
    with gr.Column(visible=False) as column:
        options.pop("config")  # a path; on the page the file is uploaded
        option = options.pop("login")
        login = gr.Radio(
            LOGINS, value="cli", label="Login", elem_id="azure-login",
            info="How the lab logs in to Azure. It never opens a browser and stores no secrets.",
        )  # fmt: skip
        inputs.add(TO, option, login)
        with gr.Row(elem_classes="bar"):
            me = gr.Button("Who am I", size="sm", scale=0, min_width=130, elem_id="azure-whoami")
            look = gr.Button("Find workspaces", size="sm", scale=0, min_width=170, elem_id="azure-find")
            config = gr.UploadButton("Use a config.json", size="sm", scale=0, min_width=170,
                                     file_types=[".json"], elem_id="azure-config")  # fmt: skip
        notice = parts.drawn("notice", elem_id="azure-notice")
        facts = parts.drawn("facts", elem_id="azure-who")
        seen = gr.Dropdown(label="Workspaces of this login", visible=False, elem_id="azure-seen")
        with gr.Row(elem_classes="fields"):
            three = [add(name, info="") for name in WHERE]
        with gr.Row(elem_classes="fields"):
            for name in ABOUT:
                add(name)
        with gr.Accordion("More options", open=False), gr.Row(elem_classes="fields"):
            for name in list(options):
                add(name)
        with gr.Row():
            dry = gr.Button("Check first (dry run)", elem_id="azure-check")
            go = gr.Button("Publish", variant="primary", elem_id="azure-go")
    me.click(partial(whoami, inputs), inputs.inputs, [notice, facts], **ASKS)
    look.click(find, login, [notice, seen], **ASKS)
    seen.input(pick, seen, three, trigger_mode="always_last", **parts.QUICK)
    config.upload(take_config, config, [notice, *three], trigger_mode="always_last", **parts.QUICK)
    return Azure(column, inputs, dry, go, [login, *three])
