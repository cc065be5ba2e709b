"""What travels inside the ONNX file: the model's identity, its input, its labels, and who wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from vitdeploy import __version__
from vitdeploy.errors import UsageError
from vitdeploy.spec import ModelSpec

KEY = "vitdeploy.model"
PRECISION = "vitdeploy.precision"
BATCH = "vitdeploy.batch"
LABELS = "labels"


def write_metadata(
    model: ir.Model, spec: ModelSpec, precision: str, batch: int | tuple[int, int, int] | None = None
) -> None:
    """Replace the exporter's metadata (it holds paths of this machine) by ours. Nothing here depends on the time.

    Args:
        batch: a fixed size, or (min, opt, max); None where it is not known.
    """
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None
    for node in model.graph:
        for out in node.outputs:
            out.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.producer_name, model.producer_version = "vitdeploy", __version__
    model.graph.name, model.graph.doc_string, model.doc_string = spec.name, None, None
    model.metadata_props.clear()
    model.metadata_props.update(metadata(spec, precision, batch))


def metadata(spec: ModelSpec, precision: str, batch: int | tuple[int, int, int] | None = None) -> dict[str, str]:
    """What a file tells about itself, whatever its format; of this machine it holds nothing."""
    from importlib.metadata import version

    public = replace(spec, weights=replace(spec.weights, location=Path(spec.weights.location).name))
    found = {
        KEY: json.dumps(public.to_dict(), sort_keys=True),
        "vitdeploy.input": str(spec.input),
        PRECISION: precision,
        "vitdeploy.torch": version("torch"),
    }
    if batch is not None:
        found[BATCH] = str(batch) if isinstance(batch, int) else ":".join(map(str, batch))
    if spec.labels:
        found[LABELS] = json.dumps(list(spec.labels))
    return found


def read_batch(metadata: Mapping[str, str]) -> tuple[int, int, int] | None:
    """(min, opt, max) of the batch, as the file says itself; None where it does not."""
    sizes = metadata.get(BATCH, "").split(":")
    if len(sizes) not in (1, 3) or not all(size.isdecimal() for size in sizes):
        return None
    return int(sizes[0]), int(sizes[len(sizes) // 2]), int(sizes[-1])


def read_spec(model: ir.Model) -> ModelSpec | None:
    """The ModelSpec of a file that vitdeploy wrote, or None."""
    text = model.metadata_props.get(KEY)
    if text is None:
        return None
    try:
        return ModelSpec.from_dict(json.loads(text))
    except ValueError as error:
        raise UsageError(f"The model's metadata is damaged: {error}.") from None
