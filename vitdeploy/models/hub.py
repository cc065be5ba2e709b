"""timm's layout on the Hugging Face hub: a folder with config.json beside the weights."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vitdeploy.errors import UsageError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
MAX_CONFIG_BYTES = 64 << 20
ELSEWHERE = "Check the network, or download the folder elsewhere and pass --weights FOLDER."


class HubFolder(NamedTuple):
    """What a folder in timm's layout says.

    Attributes:
        architecture: timm's name, not checked against the catalog.
        num_classes: width of the classifier.
        labels: readable class names in logit order, or None.
        pretrained_cfg: timm's preprocessing keys (InputSpec.from_pretrained_cfg reads them). JSON values, unchecked.
        model_args: constructor arguments that differ from the architecture's. JSON values, unchecked.
        weights: the checkpoint file.
    """

    architecture: str
    num_classes: int
    labels: tuple[str, ...] | None
    pretrained_cfg: dict[str, Any]
    model_args: dict[str, Any]
    weights: Path


def read_hub_folder(folder: str | Path) -> HubFolder:
    """Read a folder in timm's layout: `config.json`, and `model.safetensors` or `pytorch_model.bin`.

    Both of timm's styles are read: preprocessing under `pretrained_cfg`, or flat beside `architecture`.

    Raises:
        UsageError: no such folder or file, broken JSON, a value of the wrong type, no architecture, no weights, or
            labels that are not as many as the classes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.")
    path = folder / "config.json"
    config = _read_json(path)
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        sharded = any(folder.glob("*.index.json"))
        fix = "Sharded weights are not supported: merge them into one file." if sharded else None
        raise UsageError(f"{folder} has neither {' nor '.join(WEIGHTS)}.", fix=fix)
    if "architecture" not in config:
        transformers = "model_type" in config or "architectures" in config
        fix = "It is in the layout of the transformers library." if transformers else None
        raise UsageError(f"{path} names no 'architecture': not timm's layout.", fix=fix)
    architecture = _typed(path, config, "architecture", str, "")
    if not re.fullmatch(r"\w[\w.\-]*", architecture):
        raise UsageError(f"{path}: 'architecture' is {architecture[:80]!r}, which is no model's name.")
    pretrained_cfg = _typed(path, config, "pretrained_cfg", dict, None)
    if pretrained_cfg is None:  # the flat style
        apart = {"architecture", "model_args", "num_features", "labels", "label_names", "label_descriptions"}
        pretrained_cfg = {k: v for k, v in config.items() if k not in apart}
    num_classes = _typed(path, config, "num_classes", int, None)
    if num_classes is None:
        num_classes = _typed(path, pretrained_cfg, "num_classes", int, 1000)
    if num_classes < 0:
        raise UsageError(f"{path}: 'num_classes' is {num_classes}.")
    labels = _labels(path, {**pretrained_cfg, **config})
    if labels is not None and len(labels) != num_classes:
        raise UsageError(f"{path} has {len(labels)} labels for {num_classes} classes.")
    model_args = _typed(path, config, "model_args", dict, {})
    return HubFolder(architecture, num_classes, labels, pretrained_cfg, model_args, weights)


def download(hub_id: str, revision: str | None = None) -> Path:
    """The local folder of a hub repository in timm's layout, downloaded where the cache lacks it.

    Only config.json and one weights file are fetched, safetensors where there is one. The folder's name is the commit.
    The hub's own variables work: HF_HUB_OFFLINE, HF_HOME, HF_TOKEN, HF_ENDPOINT.

    Args:
        hub_id: 'org/name', with or without 'hf-hub:' before it.
        revision: branch, tag or commit; the default branch where None.

    Raises:
        UsageError: a bad id, an unknown or gated repository, no network and no cached copy, or not timm's layout.
    """
    repository = re.sub(r"^hf[-_]hub:", "", hub_id)
    if not re.fullmatch(r"[\w.\-]+/[\w.\-]+", repository):
        raise UsageError(f"'{hub_id}' is not a hub id.", fix="Write it as hf-hub:ORG/NAME.")
    folder = Path()
    for name in WEIGHTS:
        folder = _snapshot(repository, revision, ["config.json", name])
        if (folder / name).is_file():
            break
    else:
        raise UsageError(f"The hub repository {repository} has neither {' nor '.join(WEIGHTS)}.")
    if not (folder / "config.json").is_file():
        raise UsageError(f"The hub repository {repository} has no config.json: not timm's layout.")
    return folder


def _snapshot(repository: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    at = f" at revision '{revision}'" if revision else ""
    try:
        with _quiet_in_a_pipe():
            return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, etag_timeout=5))
    except errors.GatedRepoError:
        fix = "Accept its terms on the hub and log in with 'hf auth login'."
        raise UsageError(f"The hub repository {repository} is gated.", fix=fix) from None
    except errors.RevisionNotFoundError:
        raise UsageError(f"The hub repository {repository} has no revision '{revision}'.") from None
    except errors.RepositoryNotFoundError:
        fix = "Check the name; a private one needs 'hf auth login'."
        raise UsageError(f"The hub has no repository {repository}.", fix=fix) from None
    except errors.HFValidationError as error:
        raise UsageError(f"'{repository}'{at} is not a hub id: {str(error).splitlines()[0]}") from None
    except errors.LocalEntryNotFoundError:
        message = f"The hub cannot be reached, and {repository}{at} is not in the local cache."
        raise UsageError(message, fix=ELSEWHERE) from None
    except Exception as error:  # whatever the HTTP stack raises: timeouts, proxies, certificates, a full disk
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
        raise UsageError(f"Cannot download {repository}{at} from the hub: {first}.", fix=ELSEWHERE) from None


@contextmanager
def _quiet_in_a_pipe() -> Iterator[None]:
    """No progress bars where nobody watches a terminal."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UsageError(f"{path} is larger than {MAX_CONFIG_BYTES >> 20} MB: not a configuration.")
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{path.parent} has no config.json: not timm's layout.") from None
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(config, dict):
        raise UsageError(f"{path} holds a {type(config).__name__}, not an object.")
    return config


def _typed(path: Path, config: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    """config[key], which must be of `kind` where it is there and not null."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UsageError(f"{path}: '{key}' is a {type(value).__name__}, not a {kind.__name__}.")
    return value


def _labels(path: Path, config: dict[str, Any]) -> tuple[str, ...] | None:
    """Class names in logit order; descriptions are preferred to names such as 'n01440764'."""
    names = config.get("label_names") or config.get("labels")
    descriptions = config.get("label_descriptions")
    if isinstance(names, dict) and set(names) == {str(i) for i in range(len(names))}:
        names = [names[str(i)] for i in range(len(names))]
    for key, value in (("label_names", names), ("label_descriptions", descriptions)):
        if value is not None and not isinstance(value, list | dict):
            raise UsageError(f"{path}: '{key}' is a {type(value).__name__}, not a list.")
    if isinstance(names, list) and isinstance(descriptions, dict):
        names = [descriptions.get(n, n) if isinstance(n, str) else n for n in names]
    elif isinstance(descriptions, list):
        names = descriptions
    if not isinstance(names, list) or not names:
        return None
    if not all(isinstance(n, str) for n in names):
        raise UsageError(f"{path}: not every label is a string.")
    return tuple(names)
