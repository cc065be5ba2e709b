"""Runs the program of a Core ML package op by op in PyTorch: a stand-in where Core ML itself is not to be had.

It takes the ops and the weights from the written file, and rounds what each op makes to the type that the file gives
it. How Core ML sums within an op, and what it fuses, is its own: the stand-in proves the file, not the device. What an
op means is from Apple's reference of MIL (apple.github.io/coremltools).
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitdeploy.backends.base import Census, Session, closed_session_error
from vitdeploy.backends.coreml_file import UNPACKS, Op, read
from vitdeploy.errors import BackendError, UnsupportedModel

NAME = "Core ML's stand-in"
Values = dict[str, Any]  # an op's parameters: tensors, texts, or a list of tensors for 'values'
# A type that floats are rounded to; they are held as float32 in between, and whole numbers as int64.
ROUNDED = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class StandIn(Session):
    """A package's program in PyTorch, on the CPU.

    Raises UnsupportedModel on an op that it does not know, UsageError on what is no package.
    """

    copies = "no copies: PyTorch runs in the package's stead"

    def __init__(self, model: Path, threads: int = 1) -> None:
        found = read(model)
        unknown = sorted({op.kind for op in found.ops} - set(OPS))
        if unknown:
            raise UnsupportedModel(f"{NAME} does not know the op {unknown[0]}.")
        if threads:
            torch.set_num_threads(threads)
        self.inputs, self.outputs = found.inputs, found.outputs
        self._census = found.census
        self._known: Values | None = {name: held(value) for name, value in found.constants.items()}
        self._ops = [op for op in found.ops if not op.kind.startswith(UNPACKS)]
        for op in found.ops:
            if op.kind.startswith(UNPACKS):
                self._known |= run_op(op, self._known)
        self._last = {name: i for i, op in enumerate(self._ops) for names in op.reads.values() for name in names}

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._known is None:
            raise closed_session_error("Core ML")
        wanted = {spec.name for spec in self.outputs}
        made: Values = {name: held(array) for name, array in feeds.items()}
        with torch.inference_mode():
            for i, op in enumerate(self._ops):
                made |= run_op(op, ChainMap(made, self._known))
                for name in {name for names in op.reads.values() for name in names}:
                    if self._last[name] == i and name not in wanted:
                        made.pop(name, None)
        return {spec.name: made[spec.name].numpy().astype(spec.dtype) for spec in self.outputs}

    def census(self) -> Census:
        """Ops of the file, by the types that they are given."""
        if self._known is None:
            raise closed_session_error("Core ML")
        return self._census

    def close(self) -> None:
        self._known = None


def held(value: Any) -> Any:
    """A constant or an input as a tensor, floats as float32 and whole numbers as int64; a text stays one."""
    if isinstance(value, str):
        return value
    array = np.array(value, value.dtype.newbyteorder("="), order="C")
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    return torch.from_numpy(array if array.dtype == bool else array.astype(np.int64))


def run_op(op: Op, known: Mapping[str, Any]) -> Values:
    """What an op makes, by name. Raises BackendError where it fails, or makes other shapes than the file says."""
    given: Values = {
        key: [known[name] for name in names] if key == "values" else known[names[0]] for key, names in op.reads.items()
    }
    try:
        got = OPS[op.kind](given)
    except Exception as error:
        raise BackendError(f"{NAME} failed in {op.makes[0]} ({op.kind}): {error}.") from error
    results = list(got) if isinstance(got, (list, tuple)) else [got]
    made: Values = {}
    for name, kind, shape, value in zip(op.makes, op.types, op.shapes, results, strict=True):
        if tuple(value.shape) != shape:
            raise BackendError(
                f"{NAME} makes {list(value.shape)} of {name} ({op.kind}), where the file has {list(shape)}."
            )
        made[name] = rounded(value, kind)
    return made


def rounded(value: Tensor, kind: str) -> Tensor:
    """To the numbers that a type has."""
    if kind in ROUNDED:
        return value.to(ROUNDED[kind]).float()
    return value.float() if kind == "float32" else value.bool() if kind == "bool" else value.long()


def ints(value: Tensor) -> list[int]:
    return [int(one) for one in value.reshape(-1).tolist()]


def number(given: Values, key: str, usual: float = 0.0) -> float:
    return float(given[key]) if key in given else usual


def whole(given: Values, key: str, usual: int = 0) -> int:
    return int(given[key]) if key in given else usual


def flag(given: Values, key: str) -> bool:
    return bool(given[key]) if key in given else False


def flags(given: Values, key: str, count: int) -> list[bool]:
    return [bool(one) for one in given[key].tolist()] if key in given else [False] * count


def padding(given: Values, kernel: Sequence[int], steps: Sequence[int], apart: Sequence[int]) -> list[int]:
    """Before and after, of each spatial dimension, the first first."""
    kind = given.get("pad_type", "valid")
    if kind == "valid":
        return [0] * (2 * len(kernel))
    if kind == "custom":
        return ints(given["pad"])
    found = []
    for side, k, step, d in zip(given["x"].shape[2:], kernel, steps, apart, strict=True):
        total = max((math.ceil(side / step) - 1) * step + d * (k - 1) + 1 - side, 0)
        less, more = total // 2, total - total // 2
        found += [more, less] if kind == "same_lower" else [less, more]
    return found


def padded(x: Tensor, pads: Sequence[int], value: float = 0.0, mode: str = "constant") -> Tensor:
    """Pads of the last dimensions, the first of them first."""
    order = [n for i in range(len(pads) - 2, -1, -2) for n in pads[i : i + 2]]
    if not any(order):
        return x
    return F.pad(x, order, value=value) if mode == "constant" else F.pad(x, order, mode=mode)


def conv(given: Values) -> Tensor:
    x, weight = given["x"], given["weight"]
    rank = weight.ndim - 2
    steps = ints(given["strides"]) if "strides" in given else [1] * rank
    apart = ints(given["dilations"]) if "dilations" in given else [1] * rank
    x = padded(x, padding(given, weight.shape[2:], steps, apart))
    run = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return run(x, weight, given.get("bias"), steps, 0, apart, whole(given, "groups", 1))


def pool(given: Values, kind: str) -> Tensor:
    x, kernel = given["x"], ints(given["kernel_sizes"])
    rank = len(kernel)
    steps = ints(given["strides"]) if "strides" in given else [1] * rank
    pads = padding(given, kernel, steps, [1] * rank)
    if flag(given, "ceil_mode"):
        for i, (side, k, step) in enumerate(zip(x.shape[2:], kernel, steps, strict=True)):
            pads[2 * i + 1] += -(side + sum(pads[2 * i : 2 * i + 2]) - k) % step
    if kind == "max":
        run = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
        return run(padded(x, pads, -math.inf), kernel, steps)
    mean = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    made = mean(padded(x, pads), kernel, steps)
    if flag(given, "exclude_padding_from_average") and any(pads):
        made = made / mean(padded(torch.ones_like(x), pads), kernel, steps)
    return made


def linear(given: Values) -> Tensor:
    return F.linear(given["x"], given["weight"], given.get("bias"))


def matmul(given: Values) -> Tensor:
    x, y = given["x"], given["y"]
    return (x.mT if flag(given, "transpose_x") else x) @ (y.mT if flag(given, "transpose_y") else y)


def einsum(given: Values) -> Tensor:
    return torch.einsum(given["equation"].replace(" ", ""), *given["values"])


def attention(given: Values) -> Tensor:
    q, k, v = given["query"], given["key"], given["value"]
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    mask = given.get("attn_mask")
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v


def layer_norm(given: Values) -> Tensor:
    x = given["x"]
    axes = [axis % x.ndim for axis in (ints(given["axes"]) if "axes" in given else range(x.ndim))]
    mean = x.mean(axes, keepdim=True)
    variance = (x - mean).square().mean(axes, keepdim=True)
    made = (x - mean) / (variance + number(given, "epsilon", 1e-5)).sqrt()
    shape = [size if i in axes else 1 for i, size in enumerate(x.shape)]
    made = made * given["gamma"].reshape(shape) if "gamma" in given else made
    return made + given["beta"].reshape(shape) if "beta" in given else made


def batch_norm(given: Values) -> Tensor:
    x = given["x"]
    mean, variance = given["mean"], given["variance"]
    return F.batch_norm(x, mean, variance, given.get("gamma"), given.get("beta"), eps=number(given, "epsilon", 1e-5))


def instance_norm(given: Values) -> Tensor:
    return F.instance_norm(
        given["x"], weight=given.get("gamma"), bias=given.get("beta"), eps=number(given, "epsilon", 1e-5)
    )


def l2_norm(given: Values) -> Tensor:
    x = given["x"]
    axes = list(range(x.ndim - 3, x.ndim))
    return x / (x.square().sum(axes, keepdim=True) + number(given, "epsilon", 1e-6)).sqrt()


def gelu(given: Values) -> Tensor:
    x, mode = given["x"], given.get("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def reduce(run: Callable[..., Tensor]) -> Callable[[Values], Tensor]:
    def reduced(given: Values) -> Tensor:
        x = given["x"]
        axes = ints(given["axes"]) if "axes" in given else list(range(x.ndim))
        return run(x, axes, flag(given, "keep_dims"))

    return reduced


def arg(run: Callable[..., Tensor]) -> Callable[[Values], Tensor]:
    return lambda given: run(given["x"], whole(given, "axis", -1), flag(given, "keep_dims"))


def split(given: Values) -> Sequence[Tensor]:
    x, axis = given["x"], whole(given, "axis")
    if "split_sizes" in given:
        return x.split(ints(given["split_sizes"]), axis)
    return x.split(x.shape[axis] // whole(given, "num_splits"), axis)


def concat(given: Values) -> Tensor:
    values, axis = given["values"], whole(given, "axis")
    if flag(given, "interleave"):
        return torch.stack(values, axis % values[0].ndim + 1).flatten(axis % values[0].ndim, axis % values[0].ndim + 1)
    return torch.cat(values, axis)


def slice_by_index(given: Values) -> Tensor:
    x, begin, end = given["x"], ints(given["begin"]), ints(given["end"])
    steps = ints(given["stride"]) if "stride" in given else [1] * x.ndim
    first, last, drop = (flags(given, f"{key}_mask", x.ndim) for key in ("begin", "end", "squeeze"))
    for axis in range(x.ndim):
        size, step = x.shape[axis], steps[axis]
        if drop[axis]:
            at = [begin[axis] % size]
        else:
            at = list(range(size))[slice(None if first[axis] else begin[axis], None if last[axis] else end[axis], step)]
        x = x.index_select(axis, torch.tensor(at, dtype=torch.long))
    return x.squeeze([axis for axis in range(x.ndim) if drop[axis]]) if any(drop) else x


def slice_by_size(given: Values) -> Tensor:
    x = given["x"]
    for axis, (begin, size) in enumerate(zip(ints(given["begin"]), ints(given["size"]), strict=True)):
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x


def expand_dims(given: Values) -> Tensor:
    x, axes = given["x"], ints(given["axes"])
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def gather(given: Values) -> Tensor:
    x, indices, axis = given["x"], given["indices"], whole(given, "axis")
    if whole(given, "batch_dims"):
        raise ValueError("batch_dims are not known")
    axis %= x.ndim
    picked = x.index_select(axis, indices.reshape(-1) % x.shape[axis])
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def pad(given: Values) -> Tensor:
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "replicate"}[given.get("mode", "constant")]
    return padded(given["x"], ints(given["pad"]), number(given, "constant_val"), mode)


def clip(given: Values) -> Tensor:
    return given["x"].clamp(number(given, "alpha"), number(given, "beta"))


def cumsum(given: Values) -> Tensor:
    if flag(given, "exclusive") or flag(given, "reverse"):
        raise ValueError("exclusive and reverse sums are not known")
    return given["x"].cumsum(whole(given, "axis"))


def prelu(given: Values) -> Tensor:
    return F.prelu(given["x"], given["alpha"])


def fill(given: Values) -> Tensor:
    return torch.full(ints(given["shape"]), float(given["value"]))


def nearest(given: Values) -> Tensor:
    factors = [number(given, f"scale_factor_{side}", 1.0) for side in ("height", "width")]
    return F.interpolate(given["x"], scale_factor=factors, mode="nearest")


def affine(given: Values) -> Tensor:
    """constexpr_affine_dequantize: (data - zero point) * scale, along one axis."""
    data, axis = given["quantized_data"], whole(given, "axis")
    shape = [-1 if i == axis % data.ndim else 1 for i in range(data.ndim)]
    zero, scale = (one.reshape(shape) if one.ndim else one for one in (given["zero_point"], given["scale"]))
    return (data - zero).float() * scale


def blockwise(given: Values) -> Tensor:
    """constexpr_blockwise_shift_scale: a scale, and an offset, for each block of each dimension."""
    data, scale = given["data"], given["scale"]
    zero = given.get("offset", torch.zeros((), dtype=torch.long).expand(scale.shape))
    for axis in range(data.ndim):
        times = data.shape[axis] // scale.shape[axis]
        scale, zero = scale.repeat_interleave(times, axis), zero.repeat_interleave(times, axis)
    return (data - zero).float() * scale


def unary(run: Callable[[Tensor], Tensor]) -> Callable[[Values], Tensor]:
    return lambda given: run(given["x"])


def binary(run: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Values], Tensor]:
    return lambda given: run(given["x"], given["y"])


def sized(given: Values) -> Tensor:
    return given["x"].reshape(ints(given["shape"]))


# What each op makes, before it is rounded to its type.
OPS: dict[str, Callable[[Values], Any]] = {
    "conv": conv,
    "linear": linear,
    "matmul": matmul,
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
    "layer_norm": layer_norm,
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "l2_norm": l2_norm,
    "softmax": lambda given: given["x"].softmax(whole(given, "axis", -1)),
    "gelu": gelu,
    "relu": unary(torch.relu),
    "relu6": unary(F.relu6),
    "silu": unary(F.silu),
    "sigmoid": unary(torch.sigmoid),
    "tanh": unary(torch.tanh),
    "erf": unary(torch.erf),
    "exp": unary(torch.exp),
    "sqrt": unary(torch.sqrt),
    "square": unary(torch.square),
    "abs": unary(torch.abs),
    "sin": unary(torch.sin),
    "cos": unary(torch.cos),
    "floor": unary(torch.floor),
    "ceil": unary(torch.ceil),
    "round": unary(torch.round),
    "sign": unary(torch.sign),
    "softplus": unary(F.softplus),
    "softsign": unary(F.softsign),
    "identity": unary(lambda x: x),
    "cast": unary(lambda x: x),
    "logical_not": unary(torch.logical_not),
    "log": lambda given: (given["x"] + number(given, "epsilon", 1e-45)).log(),
    "rsqrt": lambda given: (given["x"] + number(given, "epsilon", 1e-12)).rsqrt(),
    "inverse": lambda given: (given["x"] + number(given, "epsilon", 1e-4)).reciprocal(),
    "leaky_relu": lambda given: F.leaky_relu(given["x"], number(given, "alpha", 0.01)),
    "elu": lambda given: F.elu(given["x"], number(given, "alpha", 1.0)),
    "prelu": prelu,
    "clip": clip,
    "sigmoid_hard": lambda given: (number(given, "alpha", 0.2) * given["x"] + number(given, "beta", 0.5)).clamp(0, 1),
    "thresholded_relu": lambda given: torch.where(given["x"] >= number(given, "alpha", 1.0), given["x"], 0.0),
    "add": binary(torch.add),
    "sub": binary(torch.sub),
    "mul": binary(torch.mul),
    "real_div": binary(torch.div),
    "floor_div": binary(torch.floor_divide),
    "mod": binary(torch.remainder),
    "pow": binary(torch.pow),
    "maximum": binary(torch.maximum),
    "minimum": binary(torch.minimum),
    "equal": binary(torch.eq),
    "not_equal": binary(torch.ne),
    "greater": binary(torch.gt),
    "greater_equal": binary(torch.ge),
    "less": binary(torch.lt),
    "less_equal": binary(torch.le),
    "logical_and": binary(torch.logical_and),
    "logical_or": binary(torch.logical_or),
    "select": lambda given: torch.where(given["cond"].bool(), given["a"], given["b"]),
    "reduce_mean": reduce(torch.mean),
    "reduce_sum": reduce(torch.sum),
    "reduce_max": reduce(torch.amax),
    "reduce_min": reduce(torch.amin),
    "reduce_l2_norm": reduce(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "reduce_sum_square": reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
    "reduce_argmax": arg(torch.argmax),
    "reduce_argmin": arg(torch.argmin),
    "cumsum": cumsum,
    "max_pool": lambda given: pool(given, "max"),
    "avg_pool": lambda given: pool(given, "avg"),
    "upsample_nearest_neighbor": nearest,
    "reshape": sized,
    "transpose": lambda given: given["x"].permute(ints(given["perm"])),
    "split": split,
    "concat": concat,
    "stack": lambda given: torch.stack(given["values"], whole(given, "axis")),
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "expand_dims": expand_dims,
    "squeeze": lambda given: given["x"].squeeze(ints(given["axes"])) if "axes" in given else given["x"].squeeze(),
    "gather": gather,
    "gather_along_axis": lambda given: given["x"].gather(whole(given, "axis"), given["indices"]),
    "tile": lambda given: given["x"].repeat(ints(given["reps"])),
    "pad": pad,
    "fill": fill,
    "reverse": lambda given: given["x"].flip(ints(given["axes"]) if "axes" in given else list(range(given["x"].ndim))),
    "pixel_shuffle": lambda given: F.pixel_shuffle(given["x"], whole(given, "upscale_factor")),
    "pixel_unshuffle": lambda given: F.pixel_unshuffle(given["x"], whole(given, "downscale_factor")),
    "constexpr_affine_dequantize": affine,
    "constexpr_blockwise_shift_scale": blockwise,
}
