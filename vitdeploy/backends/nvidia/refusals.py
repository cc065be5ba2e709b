"""What NVIDIA's ONNX parser and builder refuse, in a sentence that names the node, the reason and the mend."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vitdeploy.errors import BackendError, UnsupportedModel, VitdeployError

# What the words of a refusal mean, and what helps. The first that matches counts.
MENDS = (
    (r"zero.?point", "TensorRT wants symmetric quantisation: quantise with the scheme tensorrt."),
    (r"uint8|UINT8", "TensorRT wants int8, not uint8: quantise with the scheme tensorrt."),
    (r"QLinear|MatMulInteger|ConvInteger|DynamicQuantizeLinear", "TensorRT reads QuantizeLinear and DequantizeLinear."),
    (r"ElementWiseOperation \w+ must have same input types|same (input )?types?\b", "Both sides must have one type: "
     "a strongly typed network casts nothing by itself."),
    (r"INT64|int64.*(out of range|cannot)", "Have its integers in 32 bits."),
    (r"No importer registered|Plugin not found|could not find.*plugin", "TensorRT has no such operator: replace it, or "
     "use --backend onnxruntime --provider cuda."),
    (r"out of memory|OutOfMemory|insufficient memory|Could not find any implementation.*memory", "Give it more with "
     "--backend-option workspace=8G, or export a smaller batch."),
    (r"Could not find any implementation", "No kernel of this GPU fits: another precision for this layer (--keep) or a "
     "newer TensorRT may help."),
    (r"profile", "Give the range of its dynamic dimensions with --batch 1:8:32."),
)  # fmt: skip
UNSUPPORTED = {"UNSUPPORTED_GRAPH", "UNSUPPORTED_NODE", "UNSUPPORTED_NODE_ATTR", "UNSUPPORTED_NODE_INPUT"}
UNSUPPORTED |= {"UNSUPPORTED_NODE_DATATYPE", "UNSUPPORTED_NODE_DYNAMIC", "UNSUPPORTED_NODE_SHAPE"}


def parser_refusal(title: str, parser: Any) -> VitdeployError:
    """UnsupportedModel where the parser does not know an operator or its types, else BackendError."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        return BackendError(f"{title}'s parser refuses the graph and does not say why.")
    first = errors[0]
    reason = one_line(str(first.desc()))
    node, op = str(first.node_name() or ""), str(first.node_operator() or "")
    where = f" at the {op} '{node}'" if op and node else f" at '{node}'" if node else ""
    others = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    kind = UnsupportedModel if getattr(first.code(), "name", "") in UNSUPPORTED else BackendError
    return kind(f"{title}'s parser refuses the graph{where}: {reason}{others}.", fix=mend(f"{op} {reason}"))


def builder_refusal(title: str, errors: Sequence[str]) -> BackendError:
    """From what the logger heard while the builder worked."""
    reason = one_line(errors[0]) if errors else "it does not say why"
    node = re.search(r"\[ONNX Layer: ([^\]]+)\]", " ".join(errors))
    where = f" at '{node[1]}'" if node else ""
    return BackendError(f"{title}'s builder refuses the graph{where}: {reason}.", fix=mend(" ".join(errors)))


def mend(reason: str) -> str | None:
    return next((fix for pattern, fix in MENDS if re.search(pattern, reason)), None)


def one_line(text: str) -> str:
    """Without the places in NVIDIA's source: '[graph.cpp::parse::12] Error Code 4: ...' loses its head."""
    text = re.sub(r"\[[\w./]+\.(?:cpp|h|cu)(?:::\w+)*(?:::\d+)?\]", "", text)
    text = re.sub(r"In node -?\d+ with name: .*? and operator: \w+ \((\w+)\):\s*(?:\w+:\s*)?", "", text)
    text = re.sub(r"Assertion failed: (?:[^:]|::)+: ", "", text)
    text = re.sub(r"\b(?:IBuilder|INetworkDefinition|API Usage Error|Internal Error)::\w+: ", "", text)
    return " ".join(text.split()).rstrip(". ")
