"""What is in ncnn's two files, read without ncnn, and a trial of them with it, in a child process."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vitdeploy.backends.base import Census, TensorSpec
from vitdeploy.backends.ncnn_writer import BATCH, FP16, LEVELS, MAGIC, MOST, SHAPE_HINT
from vitdeploy.errors import UsageError
from vitdeploy.spec import BATCH as ANY

LARGEST = 64 << 20  # bytes of a .param file, and numbers of an input
PRODUCTS = ("Convolution", "ConvolutionDepthWise", "InnerProduct", "Gemm", "MatMul")
UNCOUNTED = ("Input", "MemoryData", "Noop", "Split")  # which compute nothing
SOURCE = "layers of the .param file, which ncnn computes in fp32 with its fp16 options off"
RAW, INT8 = 0x0002C056, 0x000D4B38  # tags of fp32 and of int8 weights


@dataclass(frozen=True)
class Layer:
    """A line of the text. `params` are numbers, or lists of them, by ncnn's number."""

    kind: str
    name: str
    reads: Sequence[str]
    gives: Sequence[str]
    params: Mapping[int, Any]

    def number(self, key: int, default: int = 0) -> int:
        found = self.params.get(key, default)
        return default if isinstance(found, list) else int(found)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of what it gives, as NumPy has them; empty where the file does not say."""
        found = self.params.get(SHAPE_HINT, [])
        if not isinstance(found, list) or not found or len(found) % len(self.gives):
            return []
        each = len(found) // len(self.gives)
        parts = [[int(n) for n in found[i : i + each]] for i in range(0, len(found), each)]
        good = all(1 <= part[0] <= MOST and len(part) > part[0] for part in parts)
        return [tuple(part[part[0] : 0 : -1]) for part in parts] if good else []


@dataclass(frozen=True)
class Found:
    """What is in a file.

    Attributes:
        layers: in order.
        inputs, outputs: of a batch as the file says itself, 1 where it does not. A shape of () is not in the file.
    """

    layers: Sequence[Layer]
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]

    @property
    def census(self) -> Census:
        ops: Counter[str] = Counter(layer.kind for layer in self.layers if layer.kind not in UNCOUNTED)
        compute = sum(ops[kind] for kind in PRODUCTS)
        found = {kind: {"fp32": count} for kind, count in sorted(ops.items())}
        return Census(SOURCE, found, {"fp32": compute} if compute else {})


def parse(model: Path) -> list[Layer]:
    """The layers of a `.param` file. Raises UsageError on what is none, or is not whole."""
    try:
        if model.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        lines = [line.split() for line in model.read_text("ascii").splitlines() if line.strip()]
        if [int(word) for word in lines[0]] != [MAGIC]:
            raise ValueError("it does not begin as one")
        count, blobs = (int(word) for word in lines[1])
        if count != len(lines) - 2:
            raise ValueError(f"it has {len(lines) - 2} of its {count} layers")
        layers = [layer_of(line) for line in lines[2:]]
        if sum(len(layer.gives) for layer in layers) != blobs:
            raise ValueError("it does not have as many blobs as it says")
    except (OSError, ValueError, IndexError) as error:
        said = (
            str(error)
            if isinstance(error, ValueError) and not isinstance(error, UnicodeError)
            else "it is no such text"
        )
        raise UsageError(f"{model} is not an ncnn .param file that can be read: {said}.") from None
    return layers


def layer_of(words: Sequence[str]) -> Layer:
    """Raises ValueError or IndexError on a line that is none."""
    kind, name, reads, gives = words[0], words[1], int(words[2]), int(words[3])
    blobs, rest = words[4 : 4 + reads + gives], words[4 + reads + gives :]
    if len(blobs) != reads + gives or min(reads, gives) < 0:
        raise ValueError(f"its layer {name} is cut short")
    params: dict[int, Any] = {}
    for word in rest:
        key, _, value = word.partition("=")
        number, listed = int(key), "," in value
        if number <= -23300:
            number, listed, value = -23300 - number, True, value.partition(",")[2]
        params[number] = [figure(one) for one in value.split(",") if one] if listed else figure(value)
    return Layer(kind, name, blobs[:reads], blobs[reads:], params)


def figure(word: str) -> int | float | str:
    try:
        return float(word) if set(word) & set(".eE") else int(word)
    except ValueError:
        return word


def read(model: Path) -> Found:
    """Both files of a model. Raises UsageError on what is none, or is not whole."""
    layers = parse(model)
    inputs = [layer for layer in layers if layer.kind == "Input"]
    taken = {name for layer in layers for name in layer.reads}
    if not inputs:
        raise UsageError(f"{model} has no layer Input.")
    sizes = inputs[0].params.get(BATCH, [1, 1, 1])
    batch: int | str = ANY
    if not isinstance(sizes, list) or len(sizes) != 3 or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise UsageError(f"{model} has a batch that is none.")
    if sizes[0] == sizes[2]:
        batch = sizes[0]
    shapes = {name: shape for layer in layers for name, shape in zip(layer.gives, layer.shapes, strict=False)}
    ends = [layer.gives[0] for layer in inputs], [n for layer in layers for n in layer.gives if n not in taken]
    given, made = (
        [TensorSpec(name, "float32", (batch, *shapes[name]) if name in shapes else ()) for name in names]
        for names in ends
    )
    for spec in given:
        if not spec.shape or min(spec.example) < 1 or math.prod(spec.example[1:]) > LARGEST:
            raise UsageError(f"{model} does not say the shape of its input `{spec.name}`.")
    check_weights(layers, weights_of(model))
    return Found(layers, given, made)


def weights_of(model: Path) -> Path:
    """The file with a model's weights, which lies beside it."""
    return model.with_suffix(".bin")


def check_weights(layers: Sequence[Layer], weights: Path) -> None:
    """Raises UsageError where the file of weights is absent or of another length than the layers say."""
    if not weights.is_file():
        raise UsageError(f"{weights}, with the weights of the .param file beside it, is not there.")
    bytes_by_type(layers, weights)


@dataclass(frozen=True)
class Part:
    """Numbers of a layer in the file of weights: whether a tag is before them, how many, what they are stored in."""

    layer: Layer
    tagged: bool
    count: int
    kind: str
    bytes: int


def parts(layers: Sequence[Layer], weights: Path) -> Iterator[Part]:
    """What is in the file of weights, in order; it ends at a layer that is not known here.

    Raises UsageError where the file is cut short, or longer than the layers say.
    """
    size = weights.stat().st_size
    with weights.open("rb") as file:
        for layer in layers:
            if layer.kind not in KNOWN:
                return
            for tagged, count in WEIGHTS.get(layer.kind, nothing)(layer):
                start = file.tell()
                kind, length = stored(file, count) if tagged else ("fp32", 4 * count)
                if count < 0 or start + length > size:
                    raise UsageError(f"{weights} is cut short: the weights of {layer.name} are not in it.")
                file.seek(start + length)
                yield Part(layer, tagged, count, kind, length)
        if file.tell() != size:
            raise UsageError(f"{weights} has {size} bytes, and the .param file beside it tells of {file.tell()}.")


def bytes_by_type(layers: Sequence[Layer], weights: Path) -> dict[str, int]:
    """Bytes of the weights by what they are stored in; empty where a layer is not known here."""
    found: dict[str, int] = defaultdict(int)
    for part in parts(layers, weights):
        found[part.kind] += part.bytes
    return dict(found) if all(layer.kind in KNOWN for layer in layers) else {}


def stored(file: BinaryIO, count: int) -> tuple[str, int]:
    """What weights behind a tag are stored in, and their bytes with the tag."""
    tag = int.from_bytes(file.read(4), "little")
    if tag == FP16:
        return "fp16", 4 + -(-2 * count // 4) * 4
    if tag in (0, RAW):
        return "fp32", 4 + 4 * count
    if tag == INT8:
        return "int8", 4 + -(-count // 4) * 4
    return "int8", 4 + 4 * LEVELS + -(-count // 4) * 4


Numbers = Iterator[tuple[bool, int]]  # whether there is a tag, and how many numbers


def nothing(layer: Layer) -> Numbers:
    yield from ()


def of_convolution(layer: Layer) -> Numbers:
    yield True, layer.number(6)
    if layer.number(5):
        yield False, layer.number(0)


def of_inner_product(layer: Layer) -> Numbers:
    yield True, layer.number(2)
    if layer.number(1):
        yield False, layer.number(0)


def of_gemm(layer: Layer) -> Numbers:
    m, n, k = (layer.number(key) for key in (7, 8, 9))
    if layer.number(4):
        yield True, m * k
    if layer.number(5):
        yield True, n * k
    if layer.number(6) and layer.number(10) != -1:
        yield True, (1, m, m, m * n, n)[layer.number(10) % 5]


def of_norm(layer: Layer) -> Numbers:
    yield False, 2 * layer.number(0) if layer.number(2, 1) else 0


def of_batch_norm(layer: Layer) -> Numbers:
    yield False, 4 * layer.number(0)


def of_memory(layer: Layer) -> Numbers:
    yield layer.number(21, 1) == 0, math.prod(max(layer.number(key), 1) for key in (0, 1, 11, 2))


WEIGHTS: Mapping[str, Callable[[Layer], Numbers]] = {
    "Convolution": of_convolution,
    "ConvolutionDepthWise": of_convolution,
    "InnerProduct": of_inner_product,
    "Gemm": of_gemm,
    "LayerNorm": of_norm,
    "InstanceNorm": of_norm,
    "BatchNorm": of_batch_norm,
    "MemoryData": of_memory,
}
# Layers whose bytes are known here: these, and those without weights that are written here.
KNOWN = (
    *WEIGHTS,
    *("Input", "Split", "Reshape", "Permute", "MatMul", "Softmax", "GELU", "HardSwish", "HardSigmoid", "ReLU", "ELU"),
    *("Clip", "Sigmoid", "Swish", "TanH", "Erf", "Softplus", "UnaryOp", "BinaryOp", "Crop", "Concat", "Padding"),
    *("Noop", "Reduction", "Pooling"),
)


def multiply_accumulates(layers: Sequence[Layer]) -> int | None:
    """Of one image, from the shapes in the file; None where it does not have them."""
    shapes = {name: shape for layer in layers for name, shape in zip(layer.gives, layer.shapes, strict=False)}
    counts = [work_of(layer, shapes) for layer in layers if layer.kind in PRODUCTS]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def work_of(layer: Layer, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Multiply-accumulates of a product; None where the file does not have its shapes."""
    if layer.gives[0] not in shapes or layer.reads[0] not in shapes:
        return None
    made = math.prod(shapes[layer.gives[0]])
    if layer.kind in ("Convolution", "ConvolutionDepthWise"):
        return made * layer.number(6) // max(layer.number(0), 1)
    return made * shapes[layer.reads[0]][-1]


def describe(model: Path) -> dict[str, Any]:
    """What `vitdeploy inspect` tells, as JSON values. Raises UsageError on what is no ncnn model."""
    found = read(model)
    macs = multiply_accumulates(found.layers)
    kinds = bytes_by_type(found.layers, weights_of(model))
    return {
        "format": "ncnn .param and .bin",
        "inputs": [{"name": one.name, "dtype": one.dtype, "shape": list(one.shape)} for one in found.inputs],
        "outputs": [{"name": one.name, "dtype": one.dtype, "shape": list(one.shape)} for one in found.outputs],
        "ops": {kind: sum(count.values()) for kind, count in found.census.ops.items()},
        "compute": dict(found.census.compute),
        **({"weight_bytes": sum(kinds.values()), "weight_bytes_by_dtype": kinds} if kinds else {}),
        **({"macs": macs} if macs is not None else {}),
    }


def report(model: Path) -> dict[str, Any]:
    """What became of the weights of products, for the manifest; empty where none are in 8 bits."""
    found = read(model)
    shapes = {name: shape for layer in found.layers for name, shape in zip(layer.gives, layer.shapes, strict=False)}
    rows: dict[str, dict[str, Any]] = {}
    before = 0
    for part in parts(found.layers, weights_of(model)):
        before += 4 * part.count
        layer = part.layer
        if layer.kind in PRODUCTS:  # a Gemm's bias has a tag too, and comes behind its weights
            row = {"label": layer.name, "op_type": layer.kind, "precision": part.kind}
            rows.setdefault(layer.name, {**row, "macs": work_of(layer, shapes) or 0})
    ops = list(rows.values())
    if all(row["precision"] != "int8" for row in ops):
        return {}
    return {
        "int8-weights": {
            "bits": 8,
            "ops": ops,
            "macs": sum(row["macs"] for row in ops),
            "weight_bytes_before": before,
            "weight_bytes_after": weights_of(model).stat().st_size,
        }
    }


def attempt(model: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Open a model as its users do, and run it once: (inputs, outputs), with what the file does not say of them.

    Raises UsageError where ncnn refuses it.
    """
    import numpy as np

    found = read(model)
    net = opened(model, 1)
    feeds = {spec.name: np.zeros(spec.example[1:], np.float32) for spec in found.inputs}
    outputs = []
    batch = found.inputs[0].shape[0]
    for spec in found.outputs:
        value = run(net, feeds, [spec.name])[0]
        outputs.append(TensorSpec(spec.name, "float32", (batch, *value.shape)))
    return list(found.inputs), outputs


def opened(model: Path, threads: int) -> Any:
    """ncnn's Net with the model in it. Raises UsageError where ncnn refuses it, which it also tells on stderr."""
    import ncnn

    net = ncnn.Net()
    if threads:
        net.opt.num_threads = threads
    # By default activations of some layers are rounded to fp16, on x86 too.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = net.opt.use_vulkan_compute = False
    if net.load_param(str(model)) or net.load_model(str(weights_of(model))):
        raise UsageError(f"{model} is not a model that ncnn can open.")
    return net


def run(net: Any, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
    """Outputs on one image, float32, the caller's own. Raises RuntimeError where ncnn fails."""
    import ncnn
    import numpy as np

    extractor = net.create_extractor()
    for name, array in feeds.items():
        # A copy of its own: a layer that works in place would count the references of memory that has none, and crash.
        if extractor.input(name, ncnn.Mat(array).clone()):
            raise RuntimeError(f"it does not take the input {name}")
    found = []
    for name in outputs:
        code, value = extractor.extract(name)
        if code:
            raise RuntimeError(f"it gives no {name} (code {code})")
        found.append(np.array(value, np.float32))
    return found
