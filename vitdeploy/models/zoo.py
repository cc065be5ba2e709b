"""The architectures of vit-pytorch's README by name, as data: `zoo:cvt`. Imports nothing heavy.

Each is a class or function of `vitdeploy.models` with vit-pytorch's own constructor. By default it is built as in the
README's example, without dropout.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from types import MappingProxyType
from typing import Any

from vitdeploy.errors import UsageError
from vitdeploy.spec import Packing

PREFIX = "zoo:"
SIZES = ("image_size", "img_size")  # what architectures call the image's side
FRAMES = ("frames", "num_frames")
CHANNELS = ("channels", "n_input_channels")
Arguments = Mapping[str, Any]
BASE: Arguments = {"dim": 1024, "depth": 6, "heads": 16, "mlp_dim": 2048, "num_classes": 1000}
COARSE: Arguments = {**BASE, "image_size": 256, "patch_size": 32}
FINE: Arguments = {**BASE, "image_size": 256, "patch_size": 16, "heads": 8}
T2T: Arguments = {"dim": 512, "image_size": 224, "depth": 5, "heads": 8, "mlp_dim": 512, "num_classes": 1000}
CCT: Arguments = {"img_size": 224, "n_conv_layers": 1, "kernel_size": 7, "stride": 2, "padding": 3, "num_classes": 1000}
CCT_SIZES: tuple[tuple[int, int, int, int], ...] = (
    (2, 2, 1, 128),
    (4, 2, 1, 128),
    (6, 4, 2, 256),
    (7, 4, 2, 256),
    (8, 4, 2, 256),
    (14, 6, 3, 384),
    (16, 6, 3, 384),
)
STAGES: Arguments = {"num_classes": 1000}
SCALABLE: Arguments = {**STAGES, "dim": 64, "heads": (2, 4, 8, 16), "depth": (2, 2, 20, 2)} | {
    "ssa_dim_key": (40, 40, 40, 32),
    "reduction_factor": (8, 4, 2, 1),
    "window_size": (64, 32, None, None),
}
PYRAMID: Arguments = {**STAGES, "dim": (64, 128, 256, 512), "depth": (2, 2, 8, 2)}
MOBILE: Arguments = {**STAGES, "image_size": (256, 256), "dims": (96, 120, 144)} | {
    "channels": (16, 32, 48, 48, 64, 64, 80, 80, 96, 96, 384)
}


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        name: without the prefix.
        target: 'module:attribute' within vitdeploy.models.
        paper: whose idea it is, and where it is written.
        arguments: of the constructor, by default.
        image_size: of an input, where no argument says it.
    """

    name: str
    target: str
    paper: str
    arguments: Mapping[str, Any]
    image_size: int = 224

    def shape(self, arguments: Mapping[str, Any]) -> tuple[int, ...]:
        """(channels, height, width) of an image for these arguments; of a video with its frames behind the channels."""
        size = next((arguments[key] for key in SIZES if key in arguments), self.image_size)
        height, width = (size, size) if isinstance(size, int) else size
        channels = next((arguments[key] for key in CHANNELS if isinstance(arguments.get(key), int)), 3)
        return channels, *(arguments[key] for key in FRAMES if key in arguments), height, width

    def packing(self, arguments: Mapping[str, Any]) -> Packing | None:
        """How images come as sequences, where they do."""
        wanted = ("patch_size", "length", "slots")
        return Packing(*(arguments[key] for key in wanted)) if arguments.keys() >= set(wanted) else None


def _entry(target: str, paper: str, base: Arguments, *, name: str = "", side: int = 224, **more: Any) -> Entry:
    """An entry by the name of its module, built with `base` and what is more."""
    return Entry(name or target.partition(":")[0], target, paper, {**base, **more}, side)


def _entries() -> Iterator[Entry]:
    """In the README's order."""
    yield _entry("vit:ViT", "Dosovitskiy et al., An Image is Worth 16x16 Words, 2010.11929", COARSE)
    yield _entry("simple_vit:SimpleViT", "Beyer et al., Better plain ViT baselines, 2205.01580", COARSE)
    deit = "Touvron et al., DeiT, 2012.12877"
    yield _entry("distill:DistillableViT", deit, COARSE, heads=8)
    yield _entry("distill:DistillableT2TViT", deit, T2T, name="distill_t2t")
    packed = {**COARSE, "length": 256, "slots": 8}
    for module, paper in (("na_vit", "NaViT"), ("na_vit_nested_tensor", "NaViT with nested tensors")):
        yield _entry(f"{module}:NaViT", f"Dehghani et al., {paper}, 2307.06304", COARSE)
        yield _entry(
            f"{module}:PackedNaViT", f"Dehghani et al., {paper}, packed, 2307.06304", packed, name=f"{module}_packed"
        )
    yield _entry("deepvit:DeepViT", "Zhou et al., DeepViT, 2103.11886", COARSE)
    yield _entry("cait:CaiT", "Touvron et al., Going deeper, 2103.17239", COARSE, depth=12, cls_depth=2)
    yield _entry("t2t:T2TViT", "Yuan et al., Tokens-to-Token ViT, 2101.11986", T2T)
    for layers, heads, ratio, width in CCT_SIZES:
        sized = {**CCT, "num_layers": layers, "num_heads": heads, "mlp_ratio": ratio, "embedding_dim": width}
        yield _entry("cct:CCT", "Hassani et al., Compact Transformers, 2104.05704", sized, name=f"cct_{layers}")
    large = {"lg_dim": 384, "lg_patch_size": 64, "lg_enc_depth": 3}
    small = {"sm_dim": 192, "sm_patch_size": 16, "sm_enc_depth": 2}
    cross = {"image_size": 256, "num_classes": 1000, "depth": 4, **small, **large}
    yield _entry("cross_vit:CrossViT", "Chen et al., CrossViT, 2103.14899", cross)
    pit = {**BASE, "image_size": 224, "patch_size": 14}
    yield _entry("pit:PiT", "Heo et al., Rethinking Spatial Dimensions, 2103.16302", pit, dim=256, depth=(3, 3, 3))
    levit: Arguments = {"image_size": 224, "depth": 4, "mlp_mult": 2, "dim": (256, 384, 512), "heads": (4, 6, 8)}
    yield _entry("levit:LeViT", "Graham et al., LeViT, 2104.01136", {**STAGES, **levit})
    yield _entry("cvt:CvT", "Wu et al., CvT, 2103.15808", STAGES, s3_heads=4)
    yield _entry("twins_svt:TwinsSVT", "Chu et al., Twins, 2104.13840", STAGES)
    yield _entry("regionvit:RegionViT", "Chen et al., RegionViT, 2106.02689", PYRAMID)
    yield _entry("crossformer:CrossFormer", "Wang et al., CrossFormer, 2108.00154", PYRAMID)
    yield _entry("scalable_vit:ScalableViT", "Yang et al., ScalableViT, 2203.10790", SCALABLE, side=256)
    sep: Arguments = {"dim": 32, "dim_head": 32, "heads": (1, 2, 4, 8), "depth": (1, 2, 6, 2)}
    yield _entry("sep_vit:SepViT", "Li et al., SepViT, 2203.15380", {**STAGES, **sep})
    maxvit: Arguments = {"dim_conv_stem": 64, "dim": 96, "depth": (2, 2, 5, 2)}
    yield _entry("max_vit:MaxViT", "Tu et al., MaxViT, 2204.01697", {**STAGES, **maxvit})
    nest = {"image_size": 224, "patch_size": 4, "dim": 96, "heads": 3, "num_hierarchies": 3, "num_classes": 1000}
    yield _entry("nest:NesT", "Zhang et al., Nested Transformers, 2105.12723", nest, block_repeats=(2, 2, 8))
    yield _entry("mobile_vit:MobileViT", "Mehta and Rastegari, MobileViT, 2110.02178", MOBILE)
    yield _entry("xcit:XCiT", "El-Nouby et al., XCiT, 2106.09681", COARSE, depth=12, cls_depth=2)
    yield _entry("mp3:ViT", "Zhai et al., Position Prediction as Pretraining, 2207.07611", FINE, patch_size=8)
    ats = {**FINE, "heads": 16, "max_tokens_per_depth": (256, 128, 64, 32, 16, 8)}
    yield _entry("ats_vit:ViT", "Fayyaz et al., Adaptive Token Sampling, 2111.15667", ats)
    yield _entry("vit_with_patch_merger:ViT", "Renggli et al., Learning to Merge Tokens, 2202.12015", FINE, depth=12)
    yield _entry("vit_for_small_dataset:ViT", "Lee et al., ViT for Small-Size Datasets, 2112.13492", FINE, heads=16)
    video = {**BASE, "image_size": 128, "frames": 16, "image_patch_size": 16, "frame_patch_size": 2, "heads": 8}
    yield _entry("vit_3d:ViT", "Dosovitskiy et al., ViT over videos, 2010.11929", video)
    yield _entry("simple_vit_3d:SimpleViT", "Beyer et al., SimpleViT over videos, 2205.01580", video)
    cct: Arguments = {"img_size": 224, "num_frames": 8, "embedding_dim": 384, "n_conv_layers": 2, "mlp_ratio": 3.0}
    more: Arguments = {"num_layers": 14, "num_heads": 6, "positional_embedding": "learnable"}
    yield _entry("cct_3d:CCT", "Hassani et al., CCT over videos, 2104.05704", {**STAGES, **cct, **more})
    vivit = {key: value for key, value in video.items() if key != "depth"}
    yield _entry("vivit:ViViT", "Arnab et al., ViViT, 2103.15691", vivit, spatial_depth=6, temporal_depth=6)
    yield _entry("parallel_vit:ViT", "Touvron et al., Three things about ViTs, 2203.09795", FINE)
    yield _entry("learnable_memory_vit:ViT", "Sandler et al., Learnable Memory, 2203.15243", FINE)
    yield _entry("local_vit:LocalViT", "Li et al., LocalViT, 2104.05707", COARSE)
    yield _entry("rvt:RvT", "Su et al., RoFormer, 2104.09864", COARSE)
    yield _entry("simple_vit_with_register_tokens:SimpleViT", "Darcet et al., Registers, 2309.16588", COARSE)
    look: Arguments = {"image_size": 256, "patch_size": 32, "highres_patch_size": 8, "highres_mlp_factor": 2}
    yield _entry("look_vit:LookViT", "Koner et al., LookupViT, 2407.12753", {**STAGES, **look}, dim=512, depth=2)
    yield _entry("simple_vit_with_value_residual:SimpleViT", "Zhou et al., Value Residual, 2410.17897", COARSE)
    yield _entry("normalized_vit:nViT", "Loshchilov et al., nGPT, 2410.01131", FINE)
    hyper = {**COARSE, "num_residual_streams": 8}
    yield _entry("simple_vit_with_hyper_connections:SimpleViT", "Zhu et al., Hyper-Connections, 2409.19606", hyper)
    yield _entry("vit_with_patch_dropout:ViT", "Liu et al., PatchDropout, 2208.07220", COARSE)
    yield _entry("simple_vit_with_patch_dropout:SimpleViT", "Liu et al., PatchDropout, 2208.07220", COARSE)
    yield _entry("simple_flash_attn_vit:SimpleViT", "Dao et al., FlashAttention, 2205.14135", COARSE)
    yield _entry("simple_vit_with_qk_norm:SimpleViT", "Dehghani et al., ViT-22B, 2302.05442", COARSE)
    jet: Arguments = {
        "image_size": 224,
        "dim": 512,
        "mlp_dim": 3072,
        "attn_layers": ("LA", "LA", "WA", "FA", "LA", "FA"),
    }
    yield _entry("jet_vit:JetViT", "Zou et al., JetViT, 2605.26636", {**FINE, **jet})
    yield _entry("vit_5:ViT", "Wang et al., ViT-5, 2602.08071", FINE, dim=512, mlp_dim=1024)


@cache
def entries() -> Mapping[str, Entry]:
    """All of them by name, in the README's order."""
    return MappingProxyType({entry.name: entry for entry in _entries()})


def names(pattern: str | None = None) -> list[str]:
    """Names that hold `pattern`, or match it where it has wildcards."""
    wanted = (pattern or "").removeprefix(PREFIX)
    wild = any(sign in wanted for sign in "*?[")
    return [name for name in entries() if (fnmatchcase(name, wanted) if wild else wanted in name)]


def find(name: str) -> Entry:
    """The entry of 'zoo:cvt' or 'cvt'. Raises UsageError with near names where there is none."""
    short = name.removeprefix(PREFIX)
    found = entries().get(short)
    if found is not None:
        return found
    near = difflib.get_close_matches(short, entries(), n=3)
    hint = f"Did you mean {' or '.join(PREFIX + one for one in near)}? " if near else ""
    raise UsageError(f"Unknown architecture '{PREFIX}{short}'.", fix=f"{hint}vitdeploy list --zoo prints all of them.")
