"""How each runtime wants int8 and fp8 in Q/DQ, as data. `lint.py` holds a graph against it, `int8.py` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from types import MappingProxyType

from vitdeploy.errors import UsageError
from vitdeploy.quantize.grid import GRIDS, Grid


@dataclass(frozen=True)
class Scheme:
    """One runtime's dialect of Q/DQ.

    Weights are symmetric, in int8, or in fp8 where activations are; activations have one scale a tensor. What differs:

    Attributes:
        name: as in `vitdeploy inspect --scheme`.
        activation: 'uint8', 'int8' or 'fp8' (E4M3).
        symmetric: whether the zero point of activations is 0.
        weight_peak: the largest magnitude of a quantised weight.
        weight_scales: 'channel' (one an output channel) or 'tensor'.
        bias: 'int32' (a DequantizeLinear of the accumulator's own scale) or 'float'.
        linear: 'Gemm' where a bias must be part of the node, 'any' where MatMul + Add serves as well.
        outputs: compute ops whose output must be quantised too, or they run in float.
        follow: ops between quantised tensors that then run in int8 as well.
        apart: a product's float output that others read too must not feed a QuantizeLinear directly.
        smallest: a linear layer with an inner or output width below this stays in float, and so does the product of two
            activations one of which has fewer rows or columns.
        smallest_conv: so does a convolution with fewer channels in or out, in any of its groups.
        largest_kernel: and one with a window of more pixels; 0 is no limit.
        dynamic: how int8 with activations quantised at run time is written: 'integer' (DynamicQuantizeLinear and
            MatMulInteger), 'weights' (int8 weights alone: the runtime quantises what they multiply) or '' (not at all).
        dynamic_smallest: inner and output width below which the runtime leaves such a product in float.
        not_before: a product read by such an op, perhaps through a Reshape, stays in float.
        lifted: a LayerNormalization whose output is quantised has three axes, not two.
        flat: batch and tokens may be one axis where the batch is dynamic.
        rest: precision of what is not quantised, and of the scales: 'fp32' or 'fp16'.
        opset: the first of ONNX's that can say all this.
        reasons: why, by field.
    """

    name: str
    activation: str = "uint8"
    symmetric: bool = False
    weight_peak: int = 127
    weight_scales: str = "channel"
    bias: str = "float"
    linear: str = "any"
    outputs: frozenset[str] = frozenset()
    follow: frozenset[str] = frozenset()
    apart: bool = False
    smallest: int = 0
    smallest_conv: int = 0
    largest_kernel: int = 0
    dynamic: str = ""
    dynamic_smallest: tuple[int, int] = (1, 1)
    not_before: frozenset[str] = frozenset()
    lifted: bool = False
    flat: bool = True
    rest: str = "fp32"
    opset: int = 13
    reasons: Mapping[str, str] = field(default_factory=dict)

    def check_opset(self, opset: int) -> None:
        """Raise UsageError where the scheme cannot be written in an opset."""
        if opset < self.opset:
            raise UsageError(
                f"The scheme {self.name} cannot be written in opset {opset}: {self.reasons['opset']}.",
                fix=f"Use opset {self.opset} or newer.",
            )

    @property
    def precision(self) -> str:
        """What its products run in: 'int8' or 'fp8'."""
        return "fp8" if self.activation == "fp8" else "int8"

    @property
    def grid(self) -> Grid:
        """The numbers that an activation can take."""
        return GRIDS[self.activation]

    @property
    def weight_grid(self) -> Grid:
        """The numbers that a weight can take."""
        return replace(GRIDS[self.precision], low=-self.weight_peak, high=self.weight_peak)


_ONNXRUNTIME = Scheme(
    "onnxruntime",
    bias="int32",
    linear="Gemm",
    outputs=frozenset({"Conv"}),
    follow=frozenset({"Sigmoid", "Mul", "Add"}),
    apart=True,
    dynamic="integer",
    reasons=MappingProxyType(
        {
            "activation": "VNNI multiplies u8 by s8; MLAS has no fast s8 x s8 on x86 before AMX",
            "bias": "QGemm and QLinearConv take an int32 bias in the accumulator's scale; a float one stops the fusion",
            "linear": "MatMul + Add becomes a float Gemm before Q/DQ is looked at, and then runs in fp32",
            "outputs": "QLinearConv writes int8: without Q/DQ behind it a Conv stays in fp32, while QGemm writes float",
            "apart": "a product with one quantised and one float reader is not fused; a Reshape of no effect hides the "
            "first",
            "dynamic": "its optimiser makes DynamicQuantizeMatMul or MatMulIntegerToFloat of them; ConvInteger is no "
            "match for its float Conv",
            "follow": "SiLU's Sigmoid and Mul and a residual's Add have int8 kernels, so the trunk of convolutions "
            "stays in one byte",
        }
    ),
)

_OPENVINO = Scheme(
    "openvino",
    dynamic="weights",
    dynamic_smallest=(32, 2),
    not_before=frozenset({"InstanceNormalization"}),
    lifted=True,
    flat=False,
    reasons=MappingProxyType(
        {
            "activation": "oneDNN's x86 kernels multiply u8 by s8, and fold the zero point into the bias",
            "not_before": "OpenVINO (to 2026.4 at least) moves the weights' scales behind the norm, where "
            "one a channel is lost: the outputs are garbage",
            "dynamic": "it spells DynamicQuantizeLinear and MatMulInteger out in float; with "
            "DYNAMIC_QUANTIZATION_GROUP_SIZE it quantises the inputs of a linear layer with int8 weights",
            "dynamic_smallest": "OpenVINO multiplies rows under a group of 32, or by one column, in float",
            "flat": "OpenVINO moves scales of channels through a Reshape that parts such an axis, and throws",
            "lifted": "OpenVINO's MVN writes 8 bits itself, but not where it is over the last of two axes",
            "bias": "OpenVINO adds the bias in float, fused; a quantised one only loses bits",
        }
    ),
)

_SATURATES = "without VNNI, two u8 x s8 products are added in 16 bits, which overflow"

SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            _ONNXRUNTIME,
            Scheme(
                "onnxruntime-avx2",
                weight_peak=63,
                bias="int32",
                linear="Gemm",
                outputs=_ONNXRUNTIME.outputs,
                follow=_ONNXRUNTIME.follow,
                apart=True,
                dynamic="integer",
                reasons=MappingProxyType(
                    {
                        **_ONNXRUNTIME.reasons,
                        "weight_peak": _SATURATES,
                    }
                ),
            ),
            Scheme(
                "onnxruntime-arm",
                activation="int8",
                bias="int32",
                linear="Gemm",
                outputs=_ONNXRUNTIME.outputs,
                follow=_ONNXRUNTIME.follow,
                apart=True,
                dynamic="integer",
                reasons=MappingProxyType(
                    {
                        **_ONNXRUNTIME.reasons,
                        "activation": "ARM's dot product (SDOT, SMMLA) multiplies s8 by s8",
                    }
                ),
            ),
            _OPENVINO,
            replace(
                _OPENVINO,
                name="openvino-avx2",
                weight_peak=63,
                reasons=MappingProxyType({**_OPENVINO.reasons, "weight_peak": _SATURATES}),
            ),
            Scheme(
                "tensorrt",
                activation="int8",
                symmetric=True,
                smallest=16,
                rest="fp16",
                opset=19,
                reasons=MappingProxyType(
                    {
                        "activation": "the parser takes uint8 for int8 where the zero point is 0, so that half the "
                        "range is cut off without a word, and else rejects it",
                        "symmetric": "the parser rejects a zero point that is not 0",
                        "dynamic": "the parser has neither DynamicQuantizeLinear nor MatMulInteger",
                        "bias": "the parser rejects an int32 bias behind a DequantizeLinear",
                        "outputs": "a Q behind a product breaks the fusion with what follows",
                        "smallest": "products with a width under 16 do not fill a tile and lose to fp16",
                        "rest": "a network of int8 and fp32 is slower than one of fp16",
                        "opset": "QuantizeLinear knows fp16 from opset 19 on",
                    }
                ),
            ),
            Scheme(
                "tensorrt-fp8",
                activation="fp8",
                symmetric=True,
                weight_peak=448,
                weight_scales="tensor",
                smallest=16,
                smallest_conv=17,
                largest_kernel=32,
                rest="fp16",
                opset=19,
                reasons=MappingProxyType(
                    {
                        "activation": "E4M3 is the fp8 that the parser knows and the tensor cores multiply fast",
                        "symmetric": "fp8 has a zero of its own",
                        "weight_scales": "fp8's steps are relative, so that a scale a channel gains next to nothing; "
                        "the builder multiplies by it in a kernel of its own, behind convolutions in fp32",
                        "dynamic": "the parser has neither DynamicQuantizeLinear nor MatMulInteger",
                        "bias": "there is no fp8 bias: it is added in float",
                        "outputs": "a Q behind a product breaks the fusion with what follows",
                        "smallest": "products with a width under 16 do not fill a tile and lose to fp16",
                        "smallest_conv": "TensorRT has no fast fp8 convolution in groups or of 16 channels and fewer",
                        "largest_kernel": "TensorRT's fp8 convolutions have at most 32 pixels in their window",
                        "rest": "a network of fp8 and fp32 is slower than one of fp16",
                        "opset": "QuantizeLinear knows fp8 and fp16 from opset 19 on",
                    }
                ),
            ),
            Scheme(
                "mobile",
                activation="int8",
                bias="int32",
                linear="Gemm",
                outputs=frozenset({"Conv", "Gemm"}),
                follow=frozenset({"Sigmoid", "Mul", "Add"}),
                reasons=MappingProxyType(
                    {
                        "activation": "XNNPACK, NNAPI and QNN have s8 kernels with a zero point",
                        "dynamic": "mobile runtimes take the ranges of activations from the file",
                        "bias": "they take it as int32 in the accumulator's scale",
                        "outputs": "their products write int8 alone",
                        "linear": "their fully connected operator has its bias inside",
                    }
                ),
            ),
        )
    }
)


# By precision: what is written where the backend computes in no dialect of its own, and verifies the file alone.
FOREIGN: Mapping[str, str] = MappingProxyType({"fp8": "tensorrt-fp8"})


def get(name: str) -> Scheme:
    """The scheme of that name. Raises UsageError with the nearest names when there is none."""
    if name in SCHEMES:
        return SCHEMES[name]
    near = get_close_matches(name.lower(), SCHEMES, n=2, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(SCHEMES)}."
    raise UsageError(f"Unknown scheme '{name}'.", fix=hint)
