"""Rows of the catalog for architectures that timm has trained weights for and that are not ViT, DeiT, MobileViT or
LeViT; as the catalog takes them. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

RowFields = tuple[str, str, str, dict[str, Any], int, int, int, tuple[str, ...]]

HEAD = ("head",)

# name, width, depth, heads, image, params, macs
CAIT = (
    ("cait_xxs24_224", 192, 24, 4, 224, 11_956_264, 2_523_475_200),
    ("cait_xxs24_384", 192, 24, 4, 384, 12_029_224, 9_599_136_000),
    ("cait_xxs36_224", 192, 36, 4, 224, 17_299_720, 3_755_697_408),
    ("cait_xxs36_384", 192, 36, 4, 384, 17_372_680, 14_313_009_408),
    ("cait_xs24_384", 288, 24, 6, 384, 26_670_088, 19_240_642_944),
    ("cait_s24_224", 384, 24, 8, 224, 46_916_200, 9_327_327_744),
    ("cait_s24_384", 384, 24, 8, 384, 47_062_120, 32_110_109_184),
    ("cait_s36_384", 384, 36, 8, 384, 68_366_632, 47_907_955_200),
    ("cait_m36_384", 768, 36, 16, 384, 271_221_352, 172_943_655_936),
    ("cait_m48_448", 768, 48, 16, 448, 356_460_520, 329_107_670_016),
)

# size, width, depth, heads, patch, params, macs at 224 and at 384 pixels
XCIT = (
    ("nano_12", 128, 12, 4, 16, 3_053_224, 550_952_448, 1_618_114_048),
    ("tiny_12", 192, 12, 4, 16, 6_716_272, 1_230_138_624, 3_613_012_224),
    ("tiny_24", 192, 24, 4, 16, 12_116_896, 2_322_068_736, 6_821_949_696),
    ("small_12", 384, 12, 8, 16, 26_253_304, 4_795_832_832, 14_086_267_392),
    ("small_24", 384, 24, 8, 16, 47_671_384, 9_060_592_128, 26_619_437_568),
    ("medium_24", 512, 24, 8, 16, 84_395_752, 16_083_597_312, 47_252_887_552),
    ("large_24", 768, 24, 16, 16, 189_096_136, 35_787_002_880, 105_141_027_840),
    ("nano_12", 128, 12, 4, 8, 3_049_016, 2_133_603_840, 6_269_171_200),
    ("tiny_12", 192, 12, 4, 8, 6_706_504, 4_771_008_768, 14_018_834_688),
    ("tiny_24", 192, 24, 4, 8, 12_107_128, 9_138_729_216, 26_854_584_576),
    ("small_12", 384, 12, 8, 8, 26_213_032, 18_618_819_072, 54_708_920_832),
    ("small_24", 384, 24, 8, 8, 47_631_112, 35_677_856_256, 104_841_601_536),
    ("medium_24", 512, 24, 8, 8, 84_323_624, 63_345_776_640, 186_145_822_720),
    ("large_24", 768, 24, 16, 8, 188_932_648, 140_957_303_808, 414_212_932_608),
)

# size, patch, width of a head, depth, heads, then params and macs of the plain model and of the distilled one
PIT = (
    ("ti", 16, 32, (2, 6, 4), (2, 4, 8), 4_847_272, 699_059_456, 5_104_336, 704_967_680),
    ("xs", 16, 48, (2, 6, 4), (2, 4, 8), 10_618_888, 1_394_699_136, 11_003_984, 1_406_909_952),
    ("s", 16, 48, (2, 6, 4), (3, 6, 12), 23_461_912, 2_870_796_096, 24_039_056, 2_896_646_400),
    ("b", 14, 64, (3, 6, 4), (4, 8, 16), 73_764_840, 12_401_916_928, 74_790_096, 12_482_355_712),
)

# name, widths, heads, depths, whether there are windows, params, macs
TWINS = (
    ("pcpvt_small", (64, 128, 320, 512), (1, 2, 5, 8), (3, 4, 6, 3), False, 24_106_216, 3_809_459_968),
    ("pcpvt_base", (64, 128, 320, 512), (1, 2, 5, 8), (3, 4, 18, 3), False, 43_828_456, 6_652_933_888),
    ("pcpvt_large", (64, 128, 320, 512), (1, 2, 5, 8), (3, 8, 27, 3), False, 60_989_672, 9_807_524_096),
    ("svt_small", (64, 128, 256, 512), (2, 4, 8, 16), (2, 2, 10, 4), True, 24_060_776, 2_927_353_344),
    ("svt_base", (96, 192, 384, 768), (3, 6, 12, 24), (2, 2, 18, 2), True, 56_070_952, 8_562_612_480),
    ("svt_large", (128, 256, 512, 1024), (4, 8, 16, 32), (2, 2, 18, 2), True, 99_271_400, 15_111_777_280),
)

# name, widths, heads, depths, params, macs
NEST = (
    ("nest_tiny", (96, 192, 384), (3, 6, 12), (2, 2, 8), 17_057_608, 5_807_152_128),
    ("nest_small", (96, 192, 384), (3, 6, 12), (2, 2, 20), 38_351_176, 10_322_992_128),
    ("nest_base", (128, 256, 512), (4, 8, 16), (2, 2, 20), 67_723_368, 17_925_787_648),
)

# name, image, part of it that the second branch sees, widths, blocks of that branch, heads, MLP ratio, params, macs
CROSSVIT = (
    ("tiny_240", 240, 224, (96, 192), 4, 3, 4, 7_014_800, 1_562_734_080),
    ("small_240", 240, 224, (192, 384), 4, 6, 4, 26_856_272, 5_615_557_632),
    ("base_240", 240, 224, (384, 768), 4, 12, 4, 105_025_232, 21_191_473_152),
    ("9_240", 240, 224, (128, 256), 3, 4, 3, 8_553_296, 1_840_796_160),
    ("15_240", 240, 224, (192, 384), 5, 6, 3, 27_528_464, 5_790_571_776),
    ("18_240", 240, 224, (224, 448), 6, 7, 3, 43_271_408, 9_031_158_528),
    ("9_dagger_240", 240, 224, (128, 256), 3, 4, 3, 8_776_592, 1_979_049_984),
    ("15_dagger_240", 240, 224, (192, 384), 5, 6, 3, 28_209_008, 6_112_304_640),
    ("15_dagger_408", 408, 384, (192, 384), 5, 6, 3, 28_500_080, 21_398_550_336),
    ("18_dagger_240", 240, 224, (224, 448), 6, 7, 3, 44_266_976, 9_473_218_944),
    ("18_dagger_408", 408, 384, (224, 448), 6, 7, 3, 44_606_560, 32_409_093_024),
)

_RW = {
    "conv_expand_output": False,
    "conv_output_bias": False,
    "conv_attn_ratio": 1 / 16,
    "conv_act_layer": "silu",
}
_RMLP = {**_RW, "transformer_rel_pos_type": "mlp"}
_TF = {
    "stem_bias": True,
    "conv_norm_eps": 1e-3,
    "conv_act_layer": "gelu_tanh",
    "conv_padding": "same",
    "transformer_norm_eps": 1e-5,
    "transformer_act_layer": "gelu_tanh",
    "transformer_head_first": False,
    "transformer_rel_pos_type": "bias_tf",
}

# What MaxViT's variants are: width of the first stage (each next has twice as much), depths, stem, the rest.
MAXVIT_SIZES: dict[str, tuple[int, tuple[int, ...], int | tuple[int, int], dict[str, Any]]] = {
    "pico_rw": (32, (2, 2, 5, 2), (24, 32), _RW),
    "nano_rw": (64, (1, 2, 3, 1), (32, 64), _RW),
    "tiny_rw": (64, (2, 2, 5, 2), (32, 64), _RW),
    "tiny_pm": (64, (2, 2, 5, 2), (32, 64), {**_RW, "block_type": "PM"}),
    "rmlp_pico_rw": (32, (2, 2, 5, 2), (24, 32), _RMLP),
    "rmlp_nano_rw": (64, (1, 2, 3, 1), (32, 64), _RMLP),
    "rmlp_tiny_rw": (64, (2, 2, 5, 2), (32, 64), _RMLP),
    "rmlp_small_rw": (96, (2, 2, 5, 2), (32, 64), {**_RMLP, "transformer_init_values": 1e-6}),
    "rmlp_base_rw": (96, (2, 6, 14, 2), (32, 64), {**_RMLP, "head_hidden_size": 768}),
    "tiny_tf": (64, (2, 2, 5, 2), 64, {**_TF, "head_hidden_size": 512}),
    "small_tf": (96, (2, 2, 5, 2), 64, {**_TF, "head_hidden_size": 768}),
    "base_tf": (96, (2, 6, 14, 2), 64, {**_TF, "head_hidden_size": 768}),
    "large_tf": (128, (2, 6, 14, 2), 128, {**_TF, "head_hidden_size": 1024}),
    "xlarge_tf": (192, (2, 6, 14, 2), 192, {**_TF, "head_hidden_size": 1536}),
}

# variant, image, params, macs
MAXVIT = (
    ("pico_rw", 256, 7_457_996, 1_802_452_992),
    ("nano_rw", 256, 15_451_148, 4_416_999_424),
    ("tiny_rw", 224, 29_057_312, 5_068_002_304),
    ("tiny_rw", 256, 29_066_720, 6_689_665_024),
    ("tiny_pm", 256, 30_089_344, 6_549_368_832),
    ("rmlp_pico_rw", 256, 7_515_980, 1_817_198_592),
    ("rmlp_nano_rw", 256, 15_501_452, 4_431_745_024),
    ("rmlp_tiny_rw", 256, 29_148_896, 6_714_087_424),
    ("rmlp_small_rw", 224, 64_895_044, 10_691_100_160),
    ("rmlp_small_rw", 256, 64_895_044, 14_069_594_112),
    ("rmlp_base_rw", 224, 116_135_788, 23_041_795_584),
    ("rmlp_base_rw", 384, 116_135_788, 70_652_678_144),
    ("tiny_tf", 224, 30_916_528, 5_551_836_656),
    ("tiny_tf", 384, 30_977_008, 17_392_660_096),
    ("tiny_tf", 512, 31_049_584, 33_249_671_168),
    ("small_tf", 224, 68_927_956, 11_589_125_352),
    ("small_tf", 384, 69_018_676, 35_670_447_552),
    ("small_tf", 512, 69_127_540, 66_907_014_144),
    ("base_tf", 224, 119_467_708, 23_922_314_520),
    ("base_tf", 384, 119_653_468, 73_453_431_360),
    ("base_tf", 512, 119_876_380, 137_410_907_136),
    ("large_tf", 224, 211_785_560, 43_519_736_864),
    ("large_tf", 384, 212_033_240, 132_089_717_504),
    ("large_tf", 512, 212_330_456, 243_926_257_664),
    ("xlarge_tf", 224, 506_987_643, 97_286_618_160),
    ("xlarge_tf", 384, 475_323_472, 292_082_381_952),
    ("xlarge_tf", 512, 475_769_296, 532_899_870_720),
)


def rows() -> Iterator[RowFields]:
    """Name, family, target, config, image size, params, macs and classifiers of each architecture."""
    for kind in (_cait, _xcit, _pit, _twins, _nest, _crossvit, _maxvit):
        yield from kind()


def _cait() -> Iterator[RowFields]:
    for name, width, depth, heads, image, params, macs in CAIT:
        config: dict[str, Any] = {"img_size": image, "patch_size": 16, "embed_dim": width, "depth": depth}
        config["num_heads"] = heads
        config["init_values"] = 1e-5 if depth == 24 or width == 192 else 1e-6
        yield name, "cait", "cait:Cait", config, image, params, macs, HEAD


def _xcit() -> Iterator[RowFields]:
    for size, width, depth, heads, patch, params, *macs in XCIT:
        for image, cost in zip((224, 384), macs, strict=True):
            config: dict[str, Any] = {"img_size": image, "patch_size": patch, "embed_dim": width, "depth": depth}
            config |= {"num_heads": heads, "eta": 1.0 if depth == 12 else 1e-5, "tokens_norm": size != "nano_12"}
            yield f"xcit_{size}_p{patch}_{image}", "xcit", "xcit:Xcit", config, image, params, cost, HEAD


def _pit() -> Iterator[RowFields]:
    target = "pit:PoolingVisionTransformer"
    for size, patch, base, depth, heads, params, macs, more_params, more_macs in PIT:
        config = {"img_size": 224, "patch_size": patch, "stride": patch // 2, "base_dims": [base] * 3}
        config |= {"depth": list(depth), "heads": list(heads)}
        yield f"pit_{size}_224", "pit", target, config, 224, params, macs, HEAD
        distilled = {**config, "distilled": True}
        heads_of = ("head", "head_dist")
        yield f"pit_{size}_distilled_224", "pit", target, distilled, 224, more_params, more_macs, heads_of


def _twins() -> Iterator[RowFields]:
    for name, widths, heads, depths, windows, params, macs in TWINS:
        ratios = [4, 4, 4, 4] if windows else [8, 8, 4, 4]
        config: dict[str, Any] = {"img_size": 224, "embed_dims": list(widths), "num_heads": list(heads)}
        config |= {"mlp_ratios": ratios, "depths": list(depths), "wss": [7, 7, 7, 7] if windows else None}
        yield f"twins_{name}", "twins", "twins:Twins", config, 224, params, macs, HEAD


def _nest() -> Iterator[RowFields]:
    for suffix, padding in (("", {}), ("_jx", {"pad_type": "same"})):
        for name, widths, heads, depths, params, macs in NEST:
            config = {"img_size": 224, "embed_dims": list(widths), "num_heads": list(heads), "depths": list(depths)}
            yield name + suffix, "nest", "nest:Nest", config | padding, 224, params, macs, HEAD


def _crossvit() -> Iterator[RowFields]:
    for name, image, part, widths, depth, heads, ratio, params, macs in CROSSVIT:
        config: dict[str, Any] = {"img_size": image, "img_scale": [1.0, part / image], "patch_size": [12, 16]}
        config |= {"embed_dim": list(widths), "depth": [[1, depth, 0]] * 3, "num_heads": [heads] * 2}
        config |= {"mlp_ratio": [ratio, ratio, 1], "multi_conv": "dagger" in name}
        heads_of = ("head.0", "head.1")
        yield f"crossvit_{name}", "crossvit", "crossvit:CrossVit", config, image, params, macs, heads_of


def _maxvit() -> Iterator[RowFields]:
    for variant, image, params, macs in MAXVIT:
        width, depths, stem, others = MAXVIT_SIZES[variant]
        config: dict[str, Any] = {"img_size": image, "embed_dim": [width << stage for stage in range(4)]}
        config |= {"depths": list(depths), "stem_width": stem if isinstance(stem, int) else list(stem), **others}
        yield f"maxvit_{variant}_{image}", "maxvit", "maxxvit:MaxxVit", config, image, params, macs, ("head.fc",)
