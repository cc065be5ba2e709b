"""PyTorch module -> torch.export's program: what runtimes that start from PyTorch compile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitdeploy.errors import UnsupportedModel
from vitdeploy.export.trace import attention_in_4d, quiet, reason
from vitdeploy.spec import TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

# ATen's names of the ops that do the MACs.
PRODUCTS = {"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "bilinear", "scaled_dot_product_attention"}
PRODUCTS |= {f"conv{rank}d" for rank in (1, 2, 3)} | {"convolution"}
PRODUCTS |= {f"conv_transpose{rank}d" for rank in (1, 2, 3)}


def export_program(
    module: nn.Module,
    shape: tuple[int, ...],
    *,
    batch: int | tuple[int, int, int] = 1,
    dtype: torch.dtype | None = None,
    frame: TensorSpec | None = None,
    outputs: int = 1,
) -> ExportedProgram:
    """Trace `module` to ATen ops that change nothing in place, attention as one op.

    Args:
        module: in eval mode; takes (B, C, H, W) and returns one tensor, or as many as `outputs`.
        shape: (C, H, W).
        batch: a fixed batch, or (min, opt, max) for a dynamic one.
        dtype: of the input; float32 by default.
        frame: what the module takes instead, where it takes camera frames.

    Raises:
        UnsupportedModel: torch.export cannot trace the module, or it returns something else; the message says which.
    """
    import torch

    from vitdeploy.models.layers import attention_as_one_op

    shapes: Any = None
    # torch.export takes a size of 1 for a constant, so a dynamic batch is shown by a larger one.
    size = batch if isinstance(batch, int) else max(batch[1], 2)
    if not isinstance(batch, int):
        shapes = ({0: torch.export.Dim("batch", min=batch[0], max=batch[2])},)
    example = torch.zeros((size, *shape), dtype=dtype)
    if frame is not None:
        example = torch.zeros(frame.example, dtype=getattr(torch, frame.dtype))
    try:
        with quiet(), attention_in_4d(), attention_as_one_op(), torch.no_grad():
            program = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
            program = program.run_decompositions({})
    except Exception as error:
        raise UnsupportedModel(f"torch.export cannot trace this model: {reason(error)}") from error
    made = program.graph_signature.user_outputs
    if len(made) != outputs or not all(isinstance(one, str) for one in made):
        raise UnsupportedModel(f"This model returns {len(made)} values, not {outputs}.")
    drop_asserts(program)
    return program


def drop_asserts(program: ExportedProgram) -> None:
    """Take out what export notes beside each cast: that its input is on the device of the trace, and the like."""
    graph = program.graph_module.graph
    for node in [node for node in graph.nodes if op_name(node) == "_assert_tensor_metadata"]:
        graph.erase_node(node)
    program.graph_module.recompile()


def op_name(node: torch.fx.Node) -> str:
    """ATen's name of the op that a node calls, without its overload: 'linear'; 'getitem' for Python's own."""
    name = getattr(node.target, "_name", None)  # 'aten::add.Tensor'
    text = name if isinstance(name, str) else getattr(node.target, "__name__", str(node.target))
    return text.partition("::")[2].partition(".")[0] if "::" in text else text
