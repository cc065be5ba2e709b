"""The catalog: every architecture that vitdeploy builds by name, and its published weights, as data.

Names, sizes and preprocessing are timm's. `params` counts the parameters at the default number of classes; `macs` the
multiply-accumulates of convolutions, matrix products and attention at the default input. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

from vitdeploy.errors import UsageError
from vitdeploy.models import catalog_more
from vitdeploy.models.catalog_tags import TABLE
from vitdeploy.spec import InputSpec


@dataclass(frozen=True)
class Pretrained:
    """Published weights of one architecture.

    Attributes:
        tag: what follows the dot in `mobilevit_xs.cvnets_in1k`.
        hub_id: the Hugging Face repository, or None where there is none.
        input: how these weights want their images.
        num_classes: width of their classifier; 0 where they have none.
        top1, top5: published ImageNet-1k accuracy in percent, or None.
        license: as timm records it; None where it records none.
        quickgelu: trained with QuickGELU: the `_quickgelu_` architecture gives the original results.
    """

    tag: str
    hub_id: str | None
    input: InputSpec
    num_classes: int
    top1: float | None = None
    top5: float | None = None
    license: str | None = None
    quickgelu: bool = False


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        name: timm's name.
        family: 'vit', 'dinov2', 'deit', 'deit3', 'mobilevit', 'mobilevitv2', 'levit', 'levit_conv', 'cait', 'xcit',
            'pit', 'twins', 'nest', 'crossvit' or 'maxvit'.
        target: 'module:Class' inside vitdeploy.models.
        config: constructor arguments (JSON values) but for `num_classes`; has `img_size` where the class takes one.
        input: the default input.
        num_classes: the default width of the logits; 0 for a backbone without a classifier.
        params: parameters at `num_classes`.
        macs: multiply-accumulates for one image at `input`.
        pretrained: the published weights, the default first; empty where there are none.
        classifier: module names of the classifier's Linear layers.
    """

    name: str
    family: str
    target: str
    config: Mapping[str, Any]
    input: InputSpec
    num_classes: int
    params: int
    macs: int
    pretrained: tuple[Pretrained, ...]
    classifier: tuple[str, ...]

    @property
    def default_tag(self) -> str | None:
        return self.pretrained[0].tag if self.pretrained else None

    def arguments(self, num_classes: int | None = None, image_size: tuple[int, int] | None = None) -> dict[str, Any]:
        """The constructor arguments for these many classes and this (height, width); the defaults where None."""
        arguments = {**self.config, "num_classes": self.num_classes if num_classes is None else num_classes}
        if image_size is not None and "img_size" in arguments:
            height, width = image_size
            arguments["img_size"] = height if height == width else [height, width]
        return arguments


# Width, depth, heads, and the MLP's ratio where it is not 4.
VIT_SIZES: dict[str, tuple[float, ...]] = {
    "tiny": (192, 12, 3),
    "xsmall": (256, 10, 4),
    "wee": (256, 14, 4, 5),
    "little": (320, 14, 5, 5.6),
    "small": (384, 12, 6),
    "medium": (512, 12, 8),
    "mediumd": (512, 20, 8),
    "betwixt": (640, 12, 10),
    "base": (768, 12, 12),
    "base_16_heads": (768, 12, 16),
    "base_plus": (896, 12, 14),
    "so150m2": (832, 21, 13, 34 / 13),
    "so150m": (896, 18, 14, 2.572),
    "large": (1024, 24, 16),
    "so400m": (1152, 27, 16, 3.7362),
    "so400m_tips": (1152, 27, 16, 4304 / 1152),
    "huge": (1280, 32, 16),
    "giant": (1408, 40, 16, 48 / 11),
    "giant_dinov2": (1536, 40, 24, 5.33334),
    "giantopt": (1536, 40, 16),
    "gigantic": (1664, 48, 16, 64 / 13),
}

_AVERAGE = {"class_token": False, "global_pool": "avg"}
_GAP = {**_AVERAGE, "fc_norm": False}
_REGISTERS = {**_AVERAGE, "no_embed_class": True}
_CLIP = {"pre_norm": True, "norm_eps": 1e-5}
_TIPS = {"init_values": 1.0, "reg_tokens": 1, "no_embed_class": True}

# What a family changes about the plain ViT.
VIT_STYLES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_qkv_bias": {"qkv_bias": False},
    "scaled": {"init_values": 1e-5},
    "gap": _GAP,
    "gap_scaled": {**_GAP, "qkv_bias": False, "init_values": 1e-6},
    "gap_tanh": {**_GAP, "act_layer": "gelu_tanh"},
    "reg1": {**_REGISTERS, "reg_tokens": 1, "init_values": 1e-5},
    "reg4": {**_REGISTERS, "reg_tokens": 4, "init_values": 1e-5},
    "reg4_unscaled": {**_REGISTERS, "reg_tokens": 4},
    "so150m": {**_GAP, "reg_tokens": 4},
    "so150m2": {**_AVERAGE, "reg_tokens": 1, "qkv_bias": False, "init_values": 1e-5},
    "clip": _CLIP,
    "clip_quickgelu": {**_CLIP, "act_layer": "quick_gelu"},
    "dinov2": {"init_values": 1e-5},
    "dinov2_swiglu": {"init_values": 1e-5, "mlp_layer": "swiglu_packed"},
    "dinov2_reg4": {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
    "dinov2_reg4_swiglu": {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True, "mlp_layer": "swiglu_packed"},
    "tips": _TIPS,
    "tips_swiglu": {**_TIPS, "mlp_layer": "swiglu_packed"},
    "deit3": {"init_values": 1e-6, "no_embed_class": True},
}

VitRow = tuple[str, str, int, int, str, int, int]  # name, size, patch, image, style, params, macs

VIT: tuple[VitRow, ...] = (
    # The paper's sizes, AugReg, and the wider "plus" ones.
    ("vit_tiny_patch16_224", "tiny", 16, 224, "plain", 5_717_416, 1_253_683_200),
    ("vit_tiny_patch16_384", "tiny", 16, 384, "plain", 5_790_376, 4_682_219_520),
    ("vit_small_patch32_224", "small", 32, 224, "plain", 22_878_952, 1_142_909_952),
    ("vit_small_patch32_384", "small", 32, 384, "plain", 22_915_432, 3_442_900_992),
    ("vit_small_patch16_224", "small", 16, 224, "plain", 22_050_664, 4_598_882_304),
    ("vit_small_patch16_384", "small", 16, 384, "plain", 22_196_584, 15_490_351_104),
    ("vit_small_patch8_224", "small", 8, 224, "plain", 21_670_272, 22_405_358_592),
    ("vit_base_patch32_224", "base", 32, 224, "plain", 88_224_232, 4_409_186_304),
    ("vit_base_patch32_384", "base", 32, 384, "plain", 88_297_192, 13_043_564_544),
    ("vit_base_patch16_224", "base", 16, 224, "plain", 86_567_656, 17_563_828_224),
    ("vit_base_patch16_224_miil", "base", 16, 224, "no_qkv_bias", 94_399_957, 17_571_677_952),
    ("vit_base_patch16_384", "base", 16, 384, "plain", 86_859_496, 55_484_350_464),
    ("vit_base_patch8_224", "base", 8, 224, "plain", 86_576_872, 78_148_337_664),
    ("vit_base_patch32_plus_256", "base_plus", 32, 256, "scaled", 119_478_120, 7_782_268_928),
    ("vit_base_patch16_plus_240", "base_plus", 16, 240, "scaled", 117_557_992, 27_380_907_008),
    ("vit_large_patch32_224", "large", 32, 224, "plain", 305_510_400, 15_376_515_072),
    ("vit_large_patch32_384", "large", 32, 384, "plain", 306_632_680, 45_275_963_392),
    ("vit_large_patch16_224", "large", 16, 224, "plain", 304_326_632, 61_554_712_576),
    ("vit_large_patch16_384", "large", 16, 384, "plain", 304_715_752, 191_066_300_416),
    ("vit_large_patch14_224", "large", 14, 224, "plain", 304_203_752, 81_013_006_336),
    ("vit_huge_patch14_224", "huge", 14, 224, "plain", 630_764_800, 167_293_829_120),
    ("vit_giant_patch14_224", "giant", 14, 224, "plain", 1_012_611_432, 267_031_491_584),
    ("vit_gigantic_patch14_224", "gigantic", 14, 224, "plain", 1_844_440_680, 483_747_550_208),
    # Average pooling instead of a class token.
    ("vit_medium_patch16_gap_240", "medium", 16, 240, "gap_scaled", 44_396_589, 9_210_071_552),
    ("vit_medium_patch16_gap_256", "medium", 16, 256, "gap_scaled", 38_861_288, 10_570_158_080),
    ("vit_medium_patch16_gap_384", "medium", 16, 384, "gap_scaled", 39_025_128, 26_047_139_840),
    ("vit_betwixt_patch16_gap_256", "betwixt", 16, 256, "gap_scaled", 60_372_840, 16_232_596_480),
    ("vit_base_patch16_gap_224", "base_16_heads", 16, 224, "gap", 86_566_120, 17_471_649_792),
    ("vit_huge_patch16_gap_448", "huge", 16, 448, "gap", 631_668_480, 544_373_473_280),
    ("vit_huge_patch14_gap_224", "huge", 14, 224, "gap", 630_762_240, 166_622_658_560),
    ("vit_giant_patch16_gap_224", "giant", 16, 224, "gap", 1_011_368_576, 202_352_984_064),
    # Average pooling with register tokens.
    ("vit_wee_patch16_reg1_gap_256", "wee", 16, 256, "reg1", 13_422_568, 3_825_206_272),
    ("vit_little_patch16_reg1_gap_256", "little", 16, 256, "reg1", 22_515_048, 6_255_248_640),
    ("vit_little_patch16_reg4_gap_256", "little", 16, 256, "reg4", 22_516_008, 6_334_517_760),
    ("vit_medium_patch16_reg1_gap_256", "medium", 16, 256, "reg1", 38_880_232, 10_614_210_560),
    ("vit_medium_patch16_reg4_gap_256", "medium", 16, 256, "reg4", 38_881_768, 10_746_515_456),
    ("vit_mediumd_patch16_reg4_gap_256", "mediumd", 16, 256, "reg4", 64_109_032, 17_843_408_896),
    ("vit_mediumd_patch16_reg4_gap_384", "mediumd", 16, 384, "reg4", 64_272_872, 43_606_921_216),
    ("vit_betwixt_patch16_reg1_gap_256", "betwixt", 16, 256, "reg1", 60_396_520, 16_299_458_560),
    ("vit_betwixt_patch16_reg4_gap_256", "betwixt", 16, 256, "reg4", 60_398_440, 16_500_229_120),
    ("vit_betwixt_patch16_reg4_gap_384", "betwixt", 16, 384, "reg4", 60_603_240, 39_660_651_520),
    ("vit_base_patch16_reg4_gap_256", "base", 16, 256, "reg4_unscaled", 86_615_272, 23_480_776_704),
    ("vit_so150m2_patch16_reg1_gap_256", "so150m2", 16, 256, "so150m2", 136_059_560, 36_957_960_832),
    ("vit_so150m2_patch16_reg1_gap_384", "so150m2", 16, 384, "so150m2", 136_325_800, 89_427_475_072),
    ("vit_so150m2_patch16_reg1_gap_448", "so150m2", 16, 448, "so150m2", 136_498_856, 127_370_349_184),
    ("vit_so150m_patch16_reg4_gap_256", "so150m", 16, 256, "so150m", 134_131_560, 36_708_912_128),
    ("vit_so150m_patch16_reg4_gap_384", "so150m", 16, 384, "so150m", 134_418_280, 87_878_110_208),
    # CLIP's image towers.
    ("vit_xsmall_patch16_clip_224", "xsmall", 16, 224, "clip", 8_277_504, 1_786_639_360),
    ("vit_medium_patch32_clip_224", "medium", 32, 224, "clip", 39_692_288, 1_995_489_280),
    ("vit_medium_patch16_clip_224", "medium", 16, 224, "clip", 38_587_904, 7_990_718_464),
    ("vit_betwixt_patch32_clip_224", "betwixt", 32, 224, "clip", 61_411_712, 3_084_185_600),
    ("vit_base_patch32_clip_224", "base", 32, 224, "clip", 88_225_000, 4_409_186_304),
    ("vit_base_patch32_clip_256", "base", 32, 256, "clip", 87_861_248, 5_750_016_000),
    ("vit_base_patch32_clip_384", "base", 32, 384, "clip", 88_297_960, 13_043_564_544),
    ("vit_base_patch32_clip_448", "base", 32, 448, "clip", 88_337_896, 17_910_644_736),
    ("vit_base_patch16_clip_224", "base", 16, 224, "clip", 86_568_424, 17_563_828_224),
    ("vit_base_patch16_clip_384", "base", 16, 384, "clip", 86_860_264, 55_484_350_464),
    ("vit_base_patch16_plus_clip_240", "base_plus", 16, 240, "clip", 117_214_464, 27_380_584_448),
    ("vit_large_patch14_clip_224", "large", 14, 224, "clip", 304_204_776, 81_013_006_336),
    ("vit_large_patch14_clip_336", "large", 14, 336, "clip", 304_532_456, 190_960_132_096),
    ("vit_huge_patch14_clip_224", "huge", 14, 224, "clip", 632_047_080, 167_295_109_120),
    ("vit_huge_patch14_clip_336", "huge", 14, 336, "clip", 632_456_680, 390_725_355_520),
    ("vit_huge_patch14_clip_378", "huge", 14, 378, "clip", 632_683_264, 503_481_441_280),
    ("vit_giant_patch14_clip_224", "giant", 14, 224, "clip", 1_012_646_656, 267_031_525_376),
    ("vit_gigantic_patch14_clip_224", "gigantic", 14, 224, "clip", 1_844_908_544, 483_748_016_128),
    ("vit_gigantic_patch14_clip_378", "gigantic", 14, 378, "clip", 1_845_695_616, 1_429_226_126_848),
    # The same towers with the activation that OpenAI, MetaCLIP and DFN trained them with.
    ("vit_base_patch32_clip_quickgelu_224", "base", 32, 224, "clip_quickgelu", 87_849_728, 4_408_811_520),
    ("vit_base_patch16_clip_quickgelu_224", "base", 16, 224, "clip_quickgelu", 86_193_152, 17_563_453_440),
    ("vit_large_patch14_clip_quickgelu_224", "large", 14, 224, "clip_quickgelu", 303_966_976, 81_012_768_768),
    ("vit_large_patch14_clip_quickgelu_336", "large", 14, 336, "clip_quickgelu", 304_294_656, 190_959_894_528),
    ("vit_huge_patch14_clip_quickgelu_224", "huge", 14, 224, "clip_quickgelu", 632_077_824, 167_295_139_840),
    ("vit_huge_patch14_clip_quickgelu_378", "huge", 14, 378, "clip_quickgelu", 632_683_264, 503_481_441_280),
    ("vit_gigantic_patch14_clip_quickgelu_224", "gigantic", 14, 224, "clip_quickgelu", 1_844_908_544, 483_748_016_128),
    # SigLIP's image towers, pooled by average.
    ("vit_base_patch32_siglip_gap_256", "base", 32, 256, "gap_tanh", 87_465_216, 5_662_310_400),
    ("vit_base_patch16_siglip_gap_224", "base", 16, 224, "gap", 85_797_120, 17_470_881_792),
    ("vit_base_patch16_siglip_gap_256", "base", 16, 256, "gap", 85_843_200, 23_102_226_432),
    ("vit_base_patch16_siglip_gap_384", "base", 16, 384, "gap", 86_088_960, 55_377_395_712),
    ("vit_base_patch16_siglip_gap_512", "base", 16, 512, "gap", 86_433_024, 106_904_420_352),
    ("vit_large_patch16_siglip_gap_256", "large", 16, 256, "gap", 303_361_024, 80_731_963_392),
    ("vit_large_patch16_siglip_gap_384", "large", 16, 384, "gap", 303_688_704, 190_706_614_272),
    ("vit_large_patch16_siglip_gap_512", "large", 16, 512, "gap_tanh", 304_147_456, 361_582_559_232),
    ("vit_so400m_patch16_siglip_gap_256", "so400m", 16, 256, "gap_tanh", 412_649_712, 109_537_394_688),
    ("vit_so400m_patch16_siglip_gap_384", "so400m", 16, 384, "gap_tanh", 413_018_352, 257_925_316_608),
    ("vit_so400m_patch16_siglip_gap_512", "so400m", 16, 512, "gap_tanh", 413_534_448, 487_071_940_608),
    ("vit_so400m_patch14_siglip_gap_224", "so400m", 14, 224, "gap", 412_442_352, 109_484_310_528),
    ("vit_so400m_patch14_siglip_gap_378", "so400m", 14, 378, "gap", 412_987_248, 333_224_057_088),
    ("vit_so400m_patch14_siglip_gap_448", "so400m", 14, 448, "gap", 413_327_088, 486_859_603_968),
    ("vit_so400m_patch14_siglip_gap_896", "so400m", 14, 896, "gap", 416_866_032, 2_730_196_205_568),
    ("vit_giantopt_patch16_siglip_gap_256", "giantopt", 16, 256, "gap_tanh", 1_134_838_272, 298_265_346_048),
    ("vit_giantopt_patch16_siglip_gap_384", "giantopt", 16, 384, "gap_tanh", 1_135_329_792, 693_746_270_208),
    # TIPSv2's image towers.
    ("vit_base_patch14_reg1_tipsv2", "base", 14, 448, "tips", 86_314_752, 107_008_303_104),
    ("vit_large_patch14_reg1_tipsv2", "large", 14, 448, "tips", 304_014_336, 362_199_318_528),
    ("vit_so400m_patch14_reg1_tipsv2", "so400m_tips", 14, 448, "tips", 413_391_600, 487_936_797_696),
    ("vit_giant_patch14_reg1_tipsv2", "giant_dinov2", 14, 448, "tips_swiglu", 1_135_949_312, 1_292_183_764_992),
)

DINOV2: tuple[VitRow, ...] = (
    ("vit_small_patch14_dinov2", "small", 14, 518, "dinov2", 22_056_192, 46_696_739_328),
    ("vit_small_patch14_reg4_dinov2", "small", 14, 518, "dinov2_reg4", 22_057_344, 46_882_828_800),
    ("vit_base_patch14_dinov2", "base", 14, 518, "dinov2", 86_579_712, 151_573_718_016),
    ("vit_base_patch14_reg4_dinov2", "base", 14, 518, "dinov2_reg4", 86_582_016, 152_115_766_272),
    ("vit_large_patch14_dinov2", "large", 14, 518, "dinov2", 304_367_616, 506_803_826_688),
    ("vit_large_patch14_reg4_dinov2", "large", 14, 518, "dinov2_reg4", 304_370_688, 508_551_278_592),
    ("vit_giant_patch14_dinov2", "giant_dinov2", 14, 518, "dinov2_swiglu", 1_136_479_232, 1_783_342_958_592),
    ("vit_giant_patch14_reg4_dinov2", "giant_dinov2", 14, 518, "dinov2_reg4_swiglu", 1_136_483_840, 1_789_221_537_792),
)

# DeiT (2012.12877) is the plain ViT trained otherwise; the distilled models carry a second token and a second head.
DEIT: tuple[VitRow, ...] = (
    ("deit_tiny_patch16_224", "tiny", 16, 224, "plain", 5_717_416, 1_253_683_200),
    ("deit_small_patch16_224", "small", 16, 224, "plain", 22_050_664, 4_598_882_304),
    ("deit_base_patch16_224", "base", 16, 224, "plain", 86_567_656, 17_563_828_224),
    ("deit_base_patch16_384", "base", 16, 384, "plain", 86_859_496, 55_484_350_464),
    ("deit_tiny_distilled_patch16_224", "tiny", 16, 224, "plain", 5_910_800, 1_261_003_776),
    ("deit_small_distilled_patch16_224", "small", 16, 224, "plain", 22_436_432, 4_624_140_288),
    ("deit_base_distilled_patch16_224", "base", 16, 224, "plain", 87_338_192, 17_656_811_520),
    ("deit_base_distilled_patch16_384", "base", 16, 384, "plain", 87_630_032, 55_591_342_080),
)

DEIT3: tuple[VitRow, ...] = (
    ("deit3_small_patch16_224", "small", 16, 224, "deit3", 22_059_496, 4_598_882_304),
    ("deit3_small_patch16_384", "small", 16, 384, "deit3", 22_205_416, 15_490_351_104),
    ("deit3_medium_patch16_224", "medium", 16, 224, "deit3", 38_849_512, 7_990_968_320),
    ("deit3_base_patch16_224", "base", 16, 224, "deit3", 86_585_320, 17_563_828_224),
    ("deit3_base_patch16_384", "base", 16, 384, "deit3", 86_877_160, 55_484_350_464),
    ("deit3_large_patch16_224", "large", 16, 224, "deit3", 304_374_760, 61_554_712_576),
    ("deit3_large_patch16_384", "large", 16, 384, "deit3", 304_763_880, 191_066_300_416),
    ("deit3_huge_patch14_224", "huge", 14, 224, "deit3", 632_126_440, 167_295_109_120),
)

# name, params, macs, (channels of the five stages), (transformer widths of the last three), features, expansion.
MOBILEVIT: tuple[tuple[str, int, int, tuple[int, ...], tuple[int, ...], int, int], ...] = (
    ("mobilevit_xxs", 1_272_024, 407_364_096, (16, 24, 48, 64, 80), (64, 80, 96), 320, 2),
    ("mobilevit_xs", 2_317_848, 1_025_911_808, (32, 48, 64, 80, 96), (96, 120, 144), 384, 4),
    ("mobilevit_s", 5_578_632, 2_000_831_488, (32, 64, 96, 128, 160), (144, 192, 240), 640, 4),
)

# name, width, params, macs
MOBILEVITV2: tuple[tuple[str, float, int, int], ...] = (
    ("mobilevitv2_050", 0.5, 1_370_593, 464_594_944),
    ("mobilevitv2_075", 0.75, 2_866_009, 1_027_980_288),
    ("mobilevitv2_100", 1.0, 4_901_841, 1_812_090_880),
    ("mobilevitv2_125", 1.25, 7_478_089, 2_816_926_720),
    ("mobilevitv2_150", 1.5, 10_594_753, 4_042_487_808),
    ("mobilevitv2_175", 1.75, 14_251_833, 5_488_774_144),
    ("mobilevitv2_200", 2.0, 18_449_329, 7_155_785_728),
)

# variant, widths, key width, heads, depths, extra arguments, distilled, params, macs. Each exists twice: levit_128s
# multiplies by Linear, levit_conv_128s by 1x1 convolutions.
_SILU = {"act_layer": "silu"}
_SILU_S8 = {"act_layer": "silu", "stem_type": "s8"}

Triple = tuple[int, int, int]
LEVIT: tuple[tuple[str, Triple, int, Triple, Triple, dict[str, str], bool, int, int], ...] = (
    ("128s", (128, 256, 384), 16, (4, 6, 8), (2, 3, 4), {}, True, 7_777_058, 304_660_832),
    ("128", (128, 256, 384), 16, (4, 8, 12), (4, 4, 4), {}, True, 9_213_936, 405_321_728),
    ("192", (192, 288, 384), 32, (3, 5, 6), (4, 4, 4), {}, True, 10_947_069, 657_022_080),
    ("256", (256, 384, 512), 32, (4, 6, 8), (4, 4, 4), {}, True, 18_893_876, 1_127_257_344),
    ("384", (384, 512, 768), 32, (6, 9, 12), (4, 4, 4), {}, True, 39_128_836, 2_351_786_880),
    ("256d", (256, 384, 512), 32, (4, 6, 8), (4, 8, 6), _SILU, False, 26_210_788, 1_393_700_352),
    ("512d", (512, 640, 768), 64, (8, 10, 12), (4, 8, 6), _SILU, False, 92_497_538, 5_837_054_976),
    ("512", (512, 768, 1024), 64, (8, 12, 16), (4, 4, 4), _SILU, False, 95_173_700, 5_621_390_336),
    ("384_s8", (384, 512, 768), 32, (6, 9, 12), (4, 4, 4), _SILU_S8, True, 39_118_960, 9_945_039_360),
    ("512_s8", (512, 640, 896), 64, (8, 10, 14), (4, 4, 4), _SILU_S8, False, 74_046_696, 21_769_201_664),
)

PIXELS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class _Row:
    """An architecture before its tags are read."""

    name: str
    family: str
    target: str
    config: Mapping[str, Any]
    image: int
    params: int
    macs: int
    classifier: tuple[str, ...] = ("head",)


def _vit_rows() -> Iterator[_Row]:
    families = {"vit": VIT, "dinov2": DINOV2, "deit": DEIT, "deit3": DEIT3}
    for family, rows in families.items():
        for name, size, patch, image, style, params, macs in rows:
            width, depth, heads, *ratio = VIT_SIZES[size]
            config = {"img_size": image, "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
            config |= {"mlp_ratio": ratio[0]} if ratio else {}
            distilled = "_distilled_" in name
            kind = "VisionTransformerDistilled" if distilled else "VisionTransformer"
            heads_of = ("head", "head_dist") if distilled else ("head",)
            config |= VIT_STYLES[style]
            yield _Row(name, family, f"vision_transformer:{kind}", config, image, params, macs, heads_of)


def _mobilevit_rows() -> Iterator[_Row]:
    for name, params, macs, channels, widths, features, expand in MOBILEVIT:
        strides, depths = (1, 2, 2, 2, 2), (1, 3, 1, 1, 1)
        stages: list[dict[str, int]] = [
            {"depth": depth, "chs": chs, "stride": stride, "expand": expand}
            for depth, chs, stride in zip(depths, channels, strides, strict=True)
        ]
        for stage, width, blocks in zip(stages[2:], widths, (2, 4, 3), strict=True):
            stage |= {"dim": width, "blocks": blocks}
        config = {"stem_chs": 16, "stages": stages, "num_features": features}
        yield _Row(name, "mobilevit", "mobilevit:MobileViT", config, 256, params, macs, ("head.fc",))
    for name, multiplier, params, macs in MOBILEVITV2:
        config = {"width": multiplier}
        yield _Row(name, "mobilevitv2", "mobilevit:MobileViTV2", config, 256, params, macs, ("head.fc",))


def _levit_rows() -> Iterator[_Row]:
    for family, conv in (("levit", {}), ("levit_conv", {"use_conv": True})):
        for variant, widths, key, heads, depths, extra, distilled, params, macs in LEVIT:
            config = {"img_size": 224, "embed_dim": list(widths), "key_dim": key, "num_heads": list(heads)}
            config |= {"depth": list(depths), **extra, **conv}
            target = "levit:LevitDistilled" if distilled else "levit:Levit"
            classifier = ("head.linear", "head_dist.linear") if distilled else ("head.linear",)
            yield _Row(f"{family}_{variant}", family, target, config, 224, params, macs, classifier)


def _other_rows() -> Iterator[_Row]:
    return (_Row(*fields) for fields in catalog_more.rows())


@cache
def _rows() -> dict[str, _Row]:
    kinds = (_vit_rows, _mobilevit_rows, _levit_rows, _other_rows)
    return {row.name: row for kind in kinds for row in kind()}


@cache
def _tags() -> dict[str, list[list[str]]]:
    """Architecture name to the fields of its lines in the table."""
    tags: dict[str, list[list[str]]] = {}
    for line in TABLE.strip().splitlines()[1:]:
        fields = line.split()
        tags.setdefault(fields[0].split(".")[0], []).append(fields)
    return tags


def _pretrained(image: int, fields: list[str]) -> Pretrained:
    full_name, pixels, crop, classes, license_, top1, top5, *options = fields
    name, tag = full_name.split(".")
    for option in options:
        if option.startswith("size="):
            image = int(option.removeprefix("size="))
    mean, std = PIXELS[pixels]
    interpolation = "bilinear" if "bilinear" in options else "bicubic"
    crop_mode = "squash" if "squash" in options else "center"
    # The hub holds the QuickGELU weights once, under the plain name.
    hub_id = None if "nohub" in options else f"timm/{name.replace('_quickgelu', '')}.{tag}"
    return Pretrained(
        tag,
        hub_id,
        InputSpec((3, image, image), mean, std, float(crop), interpolation, crop_mode),
        int(classes),
        None if top1 == "-" else float(top1),
        None if top5 == "-" else float(top5),
        None if license_ == "-" else license_,
        "quickgelu" in options,
    )


def _entry(row: _Row) -> Entry:
    found = [_pretrained(row.image, fields) for fields in _tags()[row.name]]
    default = found[0]
    published = tuple(p for p in found if p.tag != "untrained")
    return Entry(
        row.name,
        row.family,
        row.target,
        deepcopy(dict(row.config)),  # the caller may change it, the catalog may not
        default.input,
        default.num_classes,
        row.params,
        row.macs,
        published,
        row.classifier,
    )


def names(pattern: str | None = None) -> list[str]:
    """Architecture names in the catalog's order (families, then sizes).

    Args:
        pattern: a shell pattern ('levit_*'), or a part of the name ('small'); None for all.
    """
    if pattern is None:
        return list(_rows())
    from fnmatch import fnmatchcase

    glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    return [name for name in _rows() if fnmatchcase(name, glob)]


def find(name: str) -> tuple[Entry, Pretrained | None]:
    """The entry of `arch` or `arch.tag`, and the weights that the tag names (None where no tag is given).

    Raises:
        UsageError: an unknown architecture (the nearest names are given) or tag (the known ones are given).
    """
    arch, dot, tag = name.partition(".")
    row = _rows().get(arch)
    if row is None:
        from difflib import get_close_matches

        near = get_close_matches(arch.lower(), list(_rows()), n=5, cutoff=0.5)
        fix = f"Did you mean {', '.join(near)}?" if near else "See 'vitdeploy list'."
        raise UsageError(f"Unknown model '{name}'.", fix=fix)
    entry = _entry(row)
    if not dot:
        return entry, None
    for pretrained in entry.pretrained:
        if pretrained.tag == tag:
            return entry, pretrained
    known = ", ".join(p.tag for p in entry.pretrained)
    fix = f"It has: {known}." if known else "Nobody has published weights for it."
    raise UsageError(f"'{arch}' has no pretrained tag '{tag}'.", fix=fix)


def default_tag(name: str) -> str | None:
    """The tag that `--pretrained` takes where none is named, or None where nobody published weights."""
    return find(name)[0].default_tag
