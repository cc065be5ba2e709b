"""NaViT against vit-pytorch's, and packed, as it is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from zoo import CLOSE, NEEDLESS, alive, check_signature, far, ours, theirs

from vitdeploy.export.passes import optimise
from vitdeploy.export.trace import quiet
from vitdeploy.graph.save import save
from vitdeploy.models.na_vit import group_images_by_max_seq_len, pack

NAVIT = {"image_size": (32, 48), "patch_size": 8, "num_classes": 10, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 48}
PACKED, NESTED = "na_vit.NaViT", "na_vit_nested_tensor.NaViT"
SIZES = [(32, 48), (16, 16), (8, 48), (32, 8), (8, 8)]


def pictures(sizes: list[tuple[int, int]], channels: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(channels, *size, generator=draw) for size in sizes]


def both(name: str, **arguments: Any) -> tuple[Any, nn.Module]:
    torch.manual_seed(0)
    reference = alive(theirs(name)(**{**NAVIT, **arguments}))
    mine = ours(name)(**{**NAVIT, **arguments}).eval()
    mine.load_state_dict(reference.state_dict(), strict=True)
    return mine, reference


@pytest.mark.parametrize("name", [PACKED, NESTED])
def test_constructor_is_theirs(name: str) -> None:
    check_signature(name)


@pytest.mark.parametrize("arguments", [{}, {"channels": 1, "dim_head": 16, "token_dropout_prob": 0.5}])
def test_lists_of_images_give_theirs(arguments: dict[str, Any]) -> None:
    mine, reference = both(PACKED, **arguments)
    a, b, c, d, e = pictures(SIZES, mine.channels)
    with torch.no_grad():
        for images in ([[a], [b, c], [d, e, a]], [a, b, c], [[b]]):
            assert far(mine(images), reference(images)) <= CLOSE
        for longest in (24, 30, 2048):
            options = {"group_images": True, "group_max_seq_len": longest}
            assert far(mine([a, b, c, d, e], **options), reference([a, b, c, d, e], **options)) <= CLOSE


@pytest.mark.parametrize("arguments", [{}, {"qk_rmsnorm": False, "token_dropout_prob": 0.5}, {"channels": 1}])
def test_nested_images_give_theirs(arguments: dict[str, Any]) -> None:
    mine, reference = both(NESTED, **arguments)
    images = pictures(SIZES, mine.channels)
    with torch.no_grad():
        assert far(mine(images), reference(images)) <= CLOSE


@pytest.mark.parametrize("name", [PACKED, NESTED])
def test_batch_of_images_of_one_size_gives_theirs(name: str) -> None:
    mine, reference = both(name)
    images = torch.stack(pictures([(16, 32)] * 3))
    with torch.no_grad():
        assert far(mine(images), reference(list(images))) <= CLOSE
        assert far(mine(images), mine(list(images))) <= CLOSE
    with pytest.raises(ValueError, match="image_size"):
        mine(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("dropped", [None, 0.5])
@pytest.mark.parametrize("name", [PACKED, NESTED])
def test_every_parameter_is_trained(name: str, dropped: float | None) -> None:
    """Nested tensors of theirs have no history, and no share dropped is an error there."""
    mine = ours(name)(**NAVIT, token_dropout_prob=dropped, dropout=0.1, emb_dropout=0.1).train()
    mine(pictures(SIZES)).square().sum().backward()
    missing = [key for key, value in mine.named_parameters() if value.grad is None or not value.grad.any()]
    assert missing == []


def test_dropped_tokens_are_counted() -> None:
    image = pictures([(32, 48)])
    assert pack(image, 8, dropped=lambda height, width: 0.75).patches.shape[1] == 6
    assert pack(image, 8, dropped=lambda height, width: 0.999).patches.shape[1] == 1


@pytest.mark.parametrize("free", [True, False], ids=["free", "padded"])
@pytest.mark.parametrize("name", [PACKED, NESTED])
def test_export_of_packed_images_gives_what_lists_give(name: str, free: bool, tmp_path: Path) -> None:
    """One graph on several packings. Where only the batch is free, nothing computes shapes."""
    mine, reference = both(name)
    packing = ours(f"{name.partition('.')[0]}.PackedNaViT")(**NAVIT, length=60, slots=7).eval()
    packing.load_state_dict(reference.state_dict(), strict=True)
    a, b, c, d, e = pictures(SIZES)
    packings: list[list[list[Tensor]]] = [[[a], [b, c], [d, e, b]], [[a, b, c, d, e]], [[e]], [[b, c], [c, e]]]
    sizes = {} if free else {"length": 60}
    example = pack(packings[0], 8, **sizes)
    batch, length = (torch.export.Dim(axis, min=1, max=64) for axis in ("batch", "length"))
    rows = {0: batch, 1: length} if free else {0: batch}
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            packing,
            tuple(example),
            dynamo=True,
            optimize=False,
            dynamic_shapes=(rows, rows, rows),
            input_names=list(example._fields),
            verbose=False,
        )
    assert program is not None
    graph = program.model
    optimise(graph)
    assert not {node.op_type for node in graph.graph.all_nodes()} & (NEEDLESS - ({"Shape"} if free else set()))
    (path,) = save(graph, tmp_path / "packed.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for groups in packings:
        with torch.no_grad():
            want = mine(groups if name == PACKED else [image for group in groups for image in group])
        packed = pack(groups, 8, **sizes)
        (logits,) = session.run(None, {key: value.numpy() for key, value in packed._asdict().items()})
        got = torch.cat([torch.from_numpy(row[: len(group)]) for row, group in zip(logits, groups, strict=True)])
        assert far(got, want) <= CLOSE
        assert logits.shape[1] == 7
        assert not any(row[len(group) :].any() for row, group in zip(logits, groups, strict=True))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"patch_size": 7}, "patch_size"), ({"token_dropout_prob": 1.0}, "token_dropout_prob")],
)
@pytest.mark.parametrize("name", [PACKED, NESTED])
def test_wrong_arguments_are_named(name: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ours(name)(**{**NAVIT, **arguments})


@pytest.mark.parametrize(("size", "says"), [((64, 48), "image_size"), ((12, 16), "patch_size")])
@pytest.mark.parametrize("name", [PACKED, NESTED])
def test_wrong_images_are_named(name: str, size: tuple[int, int], says: str) -> None:
    mine = ours(name)(**NAVIT)
    with pytest.raises(ValueError, match=says):
        mine(pictures([size]))
    with pytest.raises(ValueError, match="channels"):
        mine(pictures(SIZES, 1))


def test_wrong_packings_are_named() -> None:
    images = pictures(SIZES)
    with pytest.raises(ValueError, match="length"):
        pack(images, 8, length=8)
    with pytest.raises(ValueError, match="slots"):
        pack(images, 8, slots=2)
    with pytest.raises(ValueError, match="images"):
        pack([], 8)
    with pytest.raises(ValueError, match="max_seq_len"):
        group_images_by_max_seq_len(images, 8, max_seq_len=8)
