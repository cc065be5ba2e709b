"""BatchNorms of a PyTorch program, folded into the layers before them while all is in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitdeploy.export.program import op_name

if TYPE_CHECKING:
    from torch import Tensor, fx
    from torch.export import ExportedProgram

NORM = "_native_batch_norm_legit_no_training"


def fold_norms(graph: fx.GraphModule, weights: dict[str, Tensor]) -> int:
    """Fold each BatchNorm that directly follows a convolution or a linear layer into it; returns how many.

    In place of the graph and of the mapping; the tensors, which are the module's, stay as they are.

    Args:
        weights: float32, by the name of their placeholder.
    """
    folded = 0
    for norm in [node for node in graph.graph.nodes if op_name(node) == NORM]:
        layer = layer_before(norm.args[0])
        if layer is None or not fold(norm, layer, weights):
            continue
        for first in list(norm.users):  # the other two results are for training
            first.replace_all_uses_with(norm.args[0])
        folded += 1
    graph.graph.eliminate_dead_code()
    return folded


def fold_norms_of(program: ExportedProgram) -> int:
    """As `fold_norms`, in place of a program's graph and of its weights; those of its module stay as they are."""
    from torch import nn

    signature = program.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    own = {name: target for name, target in named.items() if target in program.state_dict}
    before = {name: program.state_dict[target] for name, target in own.items()}
    weights = dict(before)
    folded = fold_norms(program.graph_module, weights)
    for name, target in own.items():
        if weights[name] is not before[name]:
            program.state_dict[target] = nn.Parameter(weights[name].detach(), requires_grad=False)
    program.graph_module.recompile()
    return folded


def layer_before(given: Any) -> Any:
    """The layer whose output alone goes into a norm: a map, or tokens (..., C), also when seen as rows (N, C).

    None where there is no such layer.
    """
    rows = given.meta["val"].ndim == 2
    layer = given.args[0] if rows and op_name(given) == "view" else given
    if any(len(node.users) != 1 for node in (given, layer)):
        return None
    if op_name(layer) == "linear" and rows:
        return layer if layer.meta["val"].shape[-1] == given.meta["val"].shape[1] else None
    return layer if op_name(layer) == "conv2d" and layer is given else None


def fold(norm: Any, layer: Any, weights: dict[str, Tensor]) -> bool:
    """Change the layer's weights, and give it the norm's bias where it has none. False where they are shared."""
    parameters = norm.args[1:5]
    weight, *bias = [argument for argument in layer.args[1:3] if argument is not None]
    own = [weight, *(bias or parameters[1:2])]
    if not all(getattr(node, "name", None) in weights for node in (*own, *parameters)):
        return False
    if any(len(node.users) != 1 for node in own):
        return False
    gain, shift, mean, variance = (weights[node.name].double() for node in parameters)
    scale = gain / (variance + norm.args[6]).sqrt()
    before = weights[bias[0].name].double() if bias else 0.0
    kernel = weights[weight.name]
    weights[weight.name] = (kernel.double() * scale.reshape(-1, *[1] * (kernel.ndim - 1))).float()
    weights[own[1].name] = (shift + (before - mean) * scale).float()
    layer.args = (*layer.args[:2], own[1], *layer.args[3:])
    return True
