"""A manifest with something for every part of a report, made without any model."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from vitdeploy.artifact import Manifest
from vitdeploy.bench.stats import LatencyStats
from vitdeploy.spec import InputSpec, ModelSpec, WeightsSource


def verification(passed: bool = True) -> dict[str, Any]:
    logits = {"samples": 4, "top1_matches": 4 if passed else 1, "classes": 1000}
    figures = {"max_abs": 0.0931, "reference_max": 3.223, "rel_l2": 0.02901, "cosine": 0.99958, "psnr": 46.6}
    outputs = {
        "logits": {**figures, "rel_max": 0.0289 if passed else 0.71, "nan_count": 0, "inf_count": 0, "logits": logits},
        "embeddings": {**figures, "rel_max": 0.0122, "nan_count": 0, "inf_count": 0},
    }
    found: dict[str, Any] = {
        "passed": passed,
        "precision": "int8",
        "bounds": {"rel_max": 0.4, "reason": "8 bits leave each activation an error of about 1 %"},
        "cases": [{"source": f"synthetic seed {i}", "batch": 1} for i in range(4)],
        "outputs": outputs,
        "reasons": [] if passed else ["The largest error is 0.71 of the largest logit, more than 0.4."],
        "reference": "PyTorch in float32",
        "stand_in": "",
        "layers": [
            {"layer": f"blocks.{i}.fc", "op_type": "Gemm", "rel_l2": error}
            for i, error in enumerate((0.0, 0.003, 0.02, 0.011, None))
        ],
    }
    if not passed:
        place = {"position": 2, "nodes": 306, "op_type": "Conv", "node": "node_conv2d", "output": "conv2d"}
        found["departure"] = {**place, "candidate": -4.199, "reference": -4.197, "metrics": {"rel_max": 0.7}}
    return found


def bench() -> dict[str, Any]:
    draw = random.Random(0)
    samples = [4.1 + draw.expovariate(4) + (3 if draw.random() < 0.01 else 0) for _ in range(700)]
    stats = LatencyStats.from_seconds([ms / 1e3 for ms in samples])
    facts = {"batch": 1, "threads": 1, "device": "cpu", "warmup_s": 0.5, "includes": "input and output copies"}
    return {
        **facts,
        "label": "m",
        "latency_ms": stats.to_dict(),
        "throughput": stats.throughput,
        "warnings": [],
        "parts": {},
        "peak_rss_bytes": 128_000_000,
        "samples_ms": samples,
        "ops_ms": {"Gemm": 3.2, "Softmax": 0.9, "Add": 0.1},
    }


def trial(name: str, p50: float, error: float, size: int, **more: Any) -> dict[str, Any]:
    answers = {"error": error, "change_percent": 40 * error, "drop_pp": 8 * error}
    found = {"name": name, "p50": p50, "ratio": 9.8 / p50, "bytes": size, "answers": answers, "out": "", "failed": ""}
    return found | more


def tuned() -> dict[str, Any]:
    trials = [
        trial("onnxruntime fp32", 9.8, 0.0, 22_800_000),
        trial("onnxruntime int8", 4.3, 0.029, 6_200_000),
        trial("openvino bf16", 3.9, 0.012, 11_500_000),
        trial("openvino int8", 3.1, 0.081, 6_400_000, out="2.30 % of 500 images change class: more than 1"),
        trial("litert fp16", 1.0, 0.0, 0, answers={}, failed="it is not installed"),
    ]
    front = ["onnxruntime fp32", "openvino bf16", "openvino int8"]
    return {"trials": trials, "chosen": "openvino bf16", "front": front, "reasons": {"openvino int8": "not accurate"}}


def device(name: str, p50: float, **more: Any) -> dict[str, Any]:
    latency = {"count": 300, "p50": p50, "p95": 1.1 * p50, "p99": 1.2 * p50, "max": 1.5 * p50}
    facts = {"device": name, "agent": "Mozilla/5.0 (Linux; Android 16)", "runtime": "onnxruntime-web 1.30.0"}
    facts |= {"provider": "wasm", "threads": 4, "when": "2026-11-01T10:00:00Z"}
    return {**facts, "verification": verification(), "latency": latency, **more}


def full(passed: bool = True) -> Manifest:
    layers = [f"blocks.{i}.{part}" for i in range(6) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    ops = [{"label": x, "op_type": "Gemm", "precision": "int8", "macs": 1_880_064, "reason": ""} for x in layers]
    errors = [
        {"label": x, "error": 0.011 / (i + 1), "input_sqnr": 46.9, "weight_sqnr": None} for i, x in enumerate(layers)
    ]
    int8 = {"ops": ops, "sensitivity": errors, "macs": 88_123_392, "quantised_macs": 86_896_128, "images": 256}
    int8 |= {"source": "photos/", "scheme": "onnxruntime"}
    census = {
        "source": "ONNX Runtime optimised graph",
        "ops": {"QGemm": {"int8": 73}, "Add": {"fp32": 25}, "Reshape": {"fp32": 30, "int8": 25}},
        "compute": {"int8": 74, "fp32": 12},
        "casts": 0,
    }
    applied = {"precision": "int8", "notes": ["applied: int8 compute in 74 of 86 ops"], "census": census, "int8": int8}
    return Manifest(
        model=ModelSpec(
            name="deit_tiny_patch16_224",
            tag="fb_in1k",
            input=InputSpec(),
            weights=WeightsSource("hub", "timm/deit_tiny_patch16_224.fb_in1k"),
        ),
        request={"precision": "int8", "backend": "onnxruntime", "batch": 1, "calib": "photos/", "run": {"threads": 1}},
        applied={**applied, "tune": tuned()},
        files={"model.onnx": {"bytes": 6_200_000, "sha256": "0"}},
        passes=[{"name": "simplify", "rewrites": 116}],
        graph={"nodes": 518, "parameters": 5_760_000, "macs": 1_075_000_000},
        verification=verification(passed),
        bench=bench() if passed else None,
        devices=[
            device("Pixel 9", 21.0, provider="webgpu"),
            device("iPad Air", 17.5),
            {},
            {"device": 3, "latency": []},
        ],
        environment={"cpu": "AMD EPYC", "memory_bytes": 25_000_000_000, "versions": {"torch": "2.13.0"}},
        steps=[
            {"name": "trace", "seconds": 3.4, "detail": "720 nodes"},
            {"name": "verify", "seconds": 0.2, "detail": ""},
        ],
        vitdeploy="0.1.0",
    )


def poisoned(value: Any, poison: str) -> Any:
    """The same records with `poison` behind every text in them, keys left out."""
    if isinstance(value, str):
        return value + poison
    if isinstance(value, dict):
        return {key: poisoned(one, poison) for key, one in value.items()}
    return [poisoned(one, poison) for one in value] if isinstance(value, list) else value


@pytest.fixture
def manifest() -> Manifest:
    return full()


@pytest.fixture
def failed() -> Manifest:
    return full(passed=False)


@pytest.fixture
def hostile() -> Callable[[str], Manifest]:
    """`hostile(poison)` is a manifest every text of which ends with it, and some names too."""

    def make(poison: str) -> Manifest:
        good = full(passed=False)
        data = poisoned(good.to_dict(), poison)
        plain = ("applied", "passes", "devices", "environment", "steps")
        facts = {name: data[name] for name in plain} | {"bench": poisoned(bench(), poison)}
        facts["verification"] = data["verification"] | {"outputs": {poison: data["verification"]["outputs"]["logits"]}}
        facts["applied"]["census"]["ops"] = {poison: {poison: 3, "fp32": 2}}
        facts["environment"][poison] = poison
        labels = tuple(f"{i}{poison}" for i in range(1000))
        model = replace(good.model, name=f"model{poison}", tag=poison, labels=labels)
        request = {**good.request, "backend": f"x{poison}", "precision": poison, "calib": poison}
        return replace(good, model=model, request=request, model_file=f"model{poison}.onnx", **facts)

    return make
