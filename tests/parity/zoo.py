"""How a class of ours is held against vit-pytorch's of the same name, and how its export is held against itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from timm_import import import_timm
from torch import Tensor, nn

from vitdeploy.export.passes import optimise
from vitdeploy.export.trace import trace
from vitdeploy.graph.save import save

CLOSE = 1e-5  # of the largest value
NEEDLESS = {"Einsum", "Shape", "Range", "BatchNormalization", "ConstantOfShape", "NonZero", "GatherND"}


@dataclass(frozen=True)
class Case:
    """A small configuration of a class.

    Attributes:
        name: module and class, 'cvt.CvT'.
        arguments: of the constructor.
        shape: of an input, without the batch.
        renamed: keys of theirs that have other names in ours, by prefix.
        needless: ops that its graph cannot do without, each of them against the rule.
    """

    name: str
    arguments: Mapping[str, Any]
    shape: tuple[int, ...] = (3, 64, 64)
    renamed: Mapping[str, str] = field(default_factory=dict)
    needless: frozenset[str] = frozenset()


@cache
def vit_pytorch(module: str) -> ModuleType:
    """A module of vit-pytorch; skips the test where it is not installed."""
    import_timm()  # declares what torchvision lacks, which vit-pytorch imports
    pytest.importorskip("vit_pytorch", reason="vit-pytorch is not installed")
    return import_module(f"vit_pytorch.{module}" if module else "vit_pytorch")


def theirs(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(vit_pytorch(module), attribute)


def ours(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(f"vitdeploy.models.{module}".rstrip(".")), attribute)


def alive(module: nn.Module) -> nn.Module:
    """Draw what is constant when a module is new, so that every branch counts: gains, biases, statistics, scales."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if not value.is_floating_point() or value.numel() == 0:
                continue
            noise = torch.randn(value.shape, generator=draw)
            if name.endswith("running_var") or (bool((value == 1).all()) and value.numel() > 1):
                value.copy_(1 + 0.3 * noise.clamp(-2, 2))
            elif bool((value == value.flatten()[0]).all()):
                value.copy_(value + 0.2 * noise)
    return module.eval()


def inputs(shape: tuple[int, ...], batch: int, seed: int) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def far(got: Any, want: Any) -> float:
    """The largest difference, as a share of the largest value wanted; of tuples, the worst of their parts."""
    if isinstance(want, (tuple, list)):
        assert len(got) == len(want)
        return max(far(a, b) for a, b in zip(got, want, strict=True))
    a, b = (np.asarray(x.detach() if isinstance(x, Tensor) else x, np.float64) for x in (got, want))
    assert a.shape == b.shape
    assert np.isfinite(b).all()
    assert np.abs(b).max() > 1e-3
    return float(np.abs(a - b).max() / np.abs(b).max())


def make_ours(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return alive(ours(case.name)(**case.arguments))


def check_parity(case: Case) -> None:
    """Theirs, with all its weights drawn, loads strictly into ours, and both give the same on two inputs."""
    torch.manual_seed(0)
    reference = alive(theirs(case.name)(**case.arguments))
    state = reference.state_dict()
    for old, new in case.renamed.items():
        state = {new + key[len(old) :] if key.startswith(old) else key: value for key, value in state.items()}
    mine = ours(case.name)(**case.arguments).eval()
    mine.load_state_dict(state, strict=True)
    with torch.no_grad():
        for batch, seed in ((1, 1), (3, 2)):
            x = inputs(case.shape, batch, seed)
            assert far(mine(x), reference(x)) <= CLOSE


def check_signature(name: str) -> None:
    """The constructor takes theirs' arguments, of the same kinds and with the same defaults."""

    def told(cls: Any) -> tuple[list[str], dict[str, Any]]:
        parameters = inspect.signature(cls).parameters.values()
        in_order = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        return in_order, {p.name: (p.kind, p.default) for p in parameters}

    assert told(ours(name)) == told(theirs(name))


def check_export(case: Case, folder: Any, batch: int | tuple[int, int, int] = (1, 2, 4)) -> None:
    """Traced and optimised, it gives what eager gives, at each batch, without ops that cost time for nothing."""
    module = make_ours(case)
    graph = trace(module, case.shape, batch=batch)  # type: ignore[arg-type]
    optimise(graph)
    found = {node.op_type for node in graph.graph.all_nodes()}
    assert not found & (NEEDLESS - case.needless), sorted(found & NEEDLESS)
    (path,) = save(graph, folder / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for size in (batch,) if isinstance(batch, int) else (batch[0], batch[2]):
        x = inputs(case.shape, size, 3)
        with torch.no_grad():
            want = module(x)
        (got,) = session.run(None, {"image": x.numpy()})
        assert far(got, want) <= CLOSE
