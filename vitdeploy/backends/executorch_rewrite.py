"""A PyTorch program spelled out in the ops that ExecuTorch's XNNPACK delegate takes.

The delegate has no LayerNorm, no attention, no split and means of maps alone, and it takes tensors of six dimensions at
most. What is not written out here is left as it is: ExecuTorch's portable kernels run it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from vitdeploy.export.program import PRODUCTS, op_name
from vitdeploy.quantize.half_program import MOVES, is_float

Rule = Callable[..., Any]
RANK = 6  # of XNNPACK's tensors, at most
# What XNNPACK has in fp16, and the two ops around it whose portable kernels sum in fp32.
HALF = PRODUCTS | {"add", "sub", "mul", "div", "relu", "hardswish", "hardtanh", "silu", "sigmoid", "softmax"}
HALF |= {"_softmax", "gelu", "layer_norm", "native_layer_norm"}
STILL = MOVES | {"_unsafe_view", "split_with_sizes", "dropout", "alias"}  # these take a tensor as it comes
RULES: dict[str, Rule] = {}


class Spelled(nn.Module):
    """A program that runs node by node, by the rules where there are such.

    Args:
        graph: of a program with no changes in place (see export.program).
        weights: float32, by the name of their placeholder.
        plan: what nodes compute in, by name; others take what comes.
    """

    def __init__(
        self, graph: fx.GraphModule, weights: Mapping[str, Tensor], plan: Mapping[str, torch.dtype] | None = None
    ) -> None:
        super().__init__()
        self._graph, self._plan = graph, dict(plan or {})
        self._slots: dict[str, str] = {}
        for i, node in enumerate(graph.graph.find_nodes(op="placeholder")):
            if node.name in weights and node.users:
                self._slots[node.name] = f"weight_{i}"
                self.register_buffer(f"weight_{i}", weights[node.name].detach())

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        names = [node.name for node in self._graph.graph.find_nodes(op="placeholder")]
        values = [getattr(self, self._slots[name]) if name in self._slots else image for name in names]
        out = Speller(self._graph, self._plan).run(*values, enable_io_processing=False)
        floats = tuple(one.float() if is_float(one) else one for one in out)
        return floats[0] if len(floats) == 1 else floats


class Speller(fx.Interpreter):
    """Runs each node by its rule, on arguments of its type."""

    def __init__(self, graph: fx.GraphModule, plan: Mapping[str, torch.dtype]) -> None:
        super().__init__(graph)
        self._plan = plan

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if self._plan:
            args, kwargs = typed((args, kwargs), self._plan.get(n.name))
        made = RULES[op_name(n)](*args, **kwargs) if op_name(n) in RULES else NotImplemented
        return n.target(*args, **kwargs) if made is NotImplemented else made  # type: ignore[operator]


def typed(arguments: Any, dtype: torch.dtype | None) -> Any:
    """Arguments in one float type: the given one, or else fp32 where they differ."""
    from torch.utils import _pytree as pytree

    met = {leaf.dtype for leaf in pytree.tree_leaves(arguments) if is_float(leaf)}
    wanted = dtype or (torch.float32 if len(met) > 1 else None)
    if wanted is None:
        return arguments
    return pytree.tree_map(lambda leaf: leaf.to(wanted) if is_float(leaf) else leaf, arguments)


def half_plan(graph: fx.GraphModule, kept: Mapping[str, Any]) -> dict[str, torch.dtype]:
    """What every node computes in where all that can be is fp16, but for `kept`."""
    plan = {}
    for node in graph.graph.nodes:
        name = op_name(node)
        if node.op != "call_function" or name in STILL or getattr(node.target, "is_view", False):
            continue
        half = name in HALF and node.name not in kept
        plan[node.name] = torch.float16 if half else torch.float32
    return plan


def rule(*names: str) -> Callable[[Rule], Rule]:
    def keep(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return keep


@rule("view", "_unsafe_view", "reshape")
def view(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A view of a view is one of what lies under both, so that one with too many dimensions is gone."""
    base: Any = getattr(x, "_viewed", x)
    made: Any = base.reshape(tuple(shape))
    if made is not base:
        made._viewed = base
    return made


@rule("flatten")
def flatten(x: Tensor, start: int = 0, end: int = -1) -> Tensor:
    start, end = start % x.ndim, end % x.ndim
    return view(x, (*x.shape[:start], -1, *x.shape[end + 1 :]))


@rule("unsqueeze")
def unsqueeze(x: Tensor, dim: int) -> Tensor:
    dim = dim % (x.ndim + 1)
    return view(x, (*x.shape[:dim], 1, *x.shape[dim:]))


@rule("squeeze")
def squeeze(x: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % x.ndim for d in dims}
    return view(x, [n for d, n in enumerate(x.shape) if d not in gone or n != 1])


@rule("clone", "contiguous", "alias", "dropout", "detach", "detach_")
def same(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x


@rule("permute")
def permute(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Without dimensions of size 1, and with those as one that stay side by side."""
    order = [d % x.ndim for d in dims]
    runs: list[list[int]] = []
    for d in (d for d in order if x.shape[d] != 1):
        between = range(runs[-1][-1] + 1, d) if runs else ()
        if runs and d > runs[-1][-1] and all(x.shape[e] == 1 for e in between):
            runs[-1].append(d)
        else:
            runs.append([d])
    shape = [x.shape[d] for d in order]
    if len(runs) < 2:
        return view(x, shape)
    before = sorted(runs)
    sizes = [math.prod(x.shape[d] for d in run) for run in before]
    return view(view(x, sizes).permute([before.index(run) for run in runs]), shape)


@rule("transpose")
def transpose(x: Tensor, one: int, other: int) -> Tensor:
    dims = list(range(x.ndim))
    dims[one], dims[other] = dims[other], dims[one]
    return permute(x, dims)


@rule("t", "numpy_T")
def t(x: Tensor) -> Tensor:
    return permute(x, range(x.ndim - 1, -1, -1))


@rule("expand")
def expand(x: Tensor, shape: Sequence[int], **kwargs: Any) -> Tensor:
    wanted = [n if m == -1 else m for n, m in zip([1] * (len(shape) - x.ndim) + list(x.shape), shape, strict=True)]
    if math.prod(wanted) == x.numel():
        return view(x, wanted)
    return NotImplemented


@rule("select")
def select(x: Tensor, dim: int, index: int) -> Tensor:
    dim = dim % x.ndim
    return view(x.narrow(dim, index % x.shape[dim], 1), (*x.shape[:dim], *x.shape[dim + 1 :]))


@rule("unbind")
def unbind(x: Tensor, dim: int = 0) -> list[Tensor]:
    return [select(x, dim, i) for i in range(x.shape[dim])]


@rule("split", "split_with_sizes")
def split(x: Tensor, sizes: int | Sequence[int], dim: int = 0) -> list[Tensor]:
    whole = x.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, whole - start) for start in range(0, whole, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [x.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=True)]


@rule("slice")
def slices(x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    """Every so many-th is the first of each group of so many."""
    whole, dim = x.shape[dim], dim % x.ndim
    if step == 1:
        return NotImplemented
    first, last, _ = slice(start, end).indices(whole)
    left = x.narrow(dim, first, last - first)
    groups = -(-(last - first) // step)
    short = groups * step - (last - first)
    if short:
        left = nn.functional.pad(left, [0, 0] * (x.ndim - 1 - dim) + [0, short])
    around = (x.shape[:dim], x.shape[dim + 1 :])
    return view(
        view(left, (*around[0], groups, step, *around[1])).narrow(dim + 1, 0, 1), (*around[0], groups, *around[1])
    )


@rule("pad", "constant_pad_nd")
def pad(x: Tensor, widths: Sequence[int], *more: Any, **kwargs: Any) -> Tensor:
    """Zeros beside tokens, as tensors: after an int8 layer ExecuTorch writes a padding that XNNPACK cannot open."""
    if x.ndim != 3 or min(widths) < 0 or kwargs or any(one not in ("constant", None, 0) for one in more):
        return NotImplemented
    for i in range(0, len(widths), 2):
        dim = x.ndim - 1 - i // 2
        sizes = [(*x.shape[:dim], width, *x.shape[dim + 1 :]) for width in widths[i : i + 2]]
        before, after = ([torch.zeros(size, dtype=x.dtype)] if size[dim] else [] for size in sizes)
        x = torch.cat([*before, x, *after], dim) if before or after else x
    return x


@rule("chunk")
def chunk(x: Tensor, chunks: int, dim: int = 0) -> list[Tensor]:
    return split(x, -(-x.shape[dim] // chunks), dim)


def weighted(x: Tensor, weight: float) -> Tensor:
    """(..., n) to (..., 1): the sum times `weight`, as a product with a constant."""
    column = torch.full((x.shape[-1], 1), weight, dtype=x.dtype)
    return view(torch.mm(view(x, (-1, x.shape[-1])), column), (*x.shape[:-1], 1))


@rule("mean")
def mean(x: Tensor, dims: int | Sequence[int] | None = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
    gone = sorted({d % x.ndim for d in ([dims] if isinstance(dims, int) else dims or range(x.ndim))})
    if kwargs.get("dtype") not in (None, x.dtype):
        return NotImplemented
    left = [d for d in range(x.ndim) if d not in gone]
    kept = [1 if d in gone else n for d, n in enumerate(x.shape)]
    shape = kept if keepdim else [x.shape[d] for d in left]
    if x.ndim == 4 and gone == [2, 3]:
        return view(x.mean((2, 3), keepdim=True), shape)
    size = math.prod(x.shape[d] for d in gone)
    rows = view(permute(x, [*left, *gone]), (-1, size))
    return view(weighted(rows, 1 / size), shape)


@rule("sum")
def sums(x: Tensor, dims: int | Sequence[int] | None = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
    if not x.is_floating_point() or kwargs:
        return NotImplemented
    gone = sorted({d % x.ndim for d in ([dims] if isinstance(dims, int) else dims or range(x.ndim))})
    left = [d for d in range(x.ndim) if d not in gone]
    kept = [1 if d in gone else n for d, n in enumerate(x.shape)]
    rows = view(permute(x, [*left, *gone]), (-1, math.prod(x.shape[d] for d in gone)))
    return view(weighted(rows, 1.0), kept if keepdim else [x.shape[d] for d in left])


@rule("pow")
def power(x: Any, exponent: Any) -> Any:
    if isinstance(x, Tensor) and exponent == 2:
        return x * x
    if isinstance(x, Tensor) and exponent == 0.5:
        return x.sqrt()
    return NotImplemented


@rule("linalg_vector_norm")
def vector_norm(x: Tensor, order: float = 2, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
    squares = sums(x * x, dims, keepdim, **kwargs) if order == 2 and x.dtype == torch.float32 else NotImplemented
    return squares if squares is NotImplemented else squares.sqrt()


@rule("group_norm")
def group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *more: Any
) -> Tensor:
    if x.dtype != torch.float32:
        return NotImplemented
    out = view(layer_norm(view(x, (x.shape[0], groups, -1)), [x[0].numel() // groups], eps=eps), x.shape)
    around = (-1, *[1] * (x.ndim - 2))
    out = out if weight is None else out * view(weight, around)
    return out if bias is None else out + view(bias, around)


@rule("layer_norm")
def layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *more: Any,
) -> Tensor:
    """In fp16 it stays: squares would overflow, and the portable kernel sums in fp32."""
    if len(shape) != 1 or x.dtype != torch.float32:
        return NotImplemented
    centred = x - weighted(x, 1 / shape[0])
    out = centred * torch.rsqrt(weighted(centred * centred, 1 / shape[0]) + constant(eps, x))
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


@rule("_native_batch_norm_legit_no_training")
def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> Any:
    """A factor and an offset for each channel, which are constants."""
    scale = torch.rsqrt(var + eps) * (1.0 if weight is None else weight)
    shift = (0.0 if bias is None else bias) - mean * scale
    around = (1, -1, *[1] * (x.ndim - 2))
    return x * scale.reshape(around) + shift.reshape(around), None, None


@rule("matmul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    if b.ndim == 2 and a.ndim >= 2:
        return view(torch.mm(view(a, (-1, a.shape[-1])), b), (*a.shape[:-1], b.shape[-1]))
    if a.ndim == 2 and b.ndim == 3:  # the transposed product of that, since XNNPACK's constants come second
        return permute(matmul(permute(b, (0, 2, 1)), t(a)), (0, 2, 1))
    if min(a.ndim, b.ndim) < 3 or a.shape[:-2] != b.shape[:-2]:
        return NotImplemented
    made = torch.bmm(view(a, (-1, *a.shape[-2:])), view(b, (-1, *b.shape[-2:])))
    return view(made, (*a.shape[:-1], b.shape[-1]))


@rule("scaled_dot_product_attention")
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    **more: Any,
) -> Tensor:
    known = mask is None or mask.dtype == query.dtype
    if is_causal or not known or query.shape[:-2] != key.shape[:-2] or value.shape[:-2] != key.shape[:-2]:
        return NotImplemented
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = matmul(query * constant(factor, query), transpose(key, -2, -1))
    if mask is not None:
        scores = scores + mask
    return matmul(scores.softmax(-1), value)


def constant(value: float, like: Tensor) -> Tensor:
    return torch.full((1,), value, dtype=like.dtype)


def with_constant(op: Rule) -> Rule:
    """Scalars as constants of the other's type: ExecuTorch would make tensors that are cast at each run."""

    def call(x: Any, y: Any, **kwargs: Any) -> Any:
        if kwargs or not any(is_float(one) and one.ndim for one in (x, y)):
            return NotImplemented
        if not isinstance(x, Tensor):
            x = constant(float(x), y)
        if not isinstance(y, Tensor):
            y = constant(float(y), x)
        return op(x, y)

    return call


for name in ("add", "sub", "mul", "div"):
    RULES[name] = with_constant(getattr(torch, name))
