"""Bound runs, on the CPU's memory: what holds for addresses, shapes and copies there holds on a GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vitdeploy.backends import ort_binding
from vitdeploy.backends.base import RunOptions
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeSession
from vitdeploy.backends.ort_binding import MOST_SHAPES, BoundRuns, Place, bound_runs
from vitdeploy.errors import BackendError, UsageError

NET = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[batch,4] x) => (float[batch,4] square, float[batch,4] minus) {
        square = Mul(x, x)
        minus = Neg(x)
    }"""
LOOSE = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[batch,4] x) => (int64[found,2] where, float[batch,4] minus) {
        rows = NonZero(x)
        where = Transpose(rows)
        minus = Neg(x)
    }"""


class Counted(Place):
    """The CPU's memory; remembers the shapes that it was asked for."""

    def empty(self, shape: Any, dtype: str) -> Any:
        asked.append(tuple(shape))
        return super().empty(shape, dtype)


asked: list[tuple[int, ...]] = []


def bound(folder: Path, text: str = NET, *, cuda_graph: bool = False) -> OnnxRuntimeSession:
    """A session on the CPU provider whose runs are bound."""
    asked.clear()
    backend = OnnxRuntimeBackend()
    file = backend.compile(ir.from_proto(onnx.parser.parse_model(text)), folder, RunOptions())[0]
    session = OnnxRuntimeSession(file, RunOptions("cpu"))
    session._bound = BoundRuns(session.native, session.inputs, session.outputs, Counted("cpu"), cuda_graph=cuda_graph)
    return session


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def test_run_equals_numpy_when_the_batch_changes_to_and_fro(tmp_path: Path) -> None:
    session = bound(tmp_path)
    for seed, batch in enumerate((1, 3, 1, 2, 3)):
        x = rows(batch, seed)
        got = session.run({"x": x})
        assert list(got) == ["square", "minus"]
        np.testing.assert_array_equal(got["square"], x * x)
        np.testing.assert_array_equal(got["minus"], -x)


def test_outputs_belong_to_the_caller_when_the_session_runs_again(tmp_path: Path) -> None:
    session = bound(tmp_path)
    first = session.run({"x": rows(2)})
    session.run({"x": rows(2) + 1})
    np.testing.assert_array_equal(first["minus"], -rows(2))
    first["minus"][...] = 7
    np.testing.assert_array_equal(session.run({"x": rows(2)})["minus"], -rows(2))


def test_inputs_stay_the_callers_when_they_change_after_the_run(tmp_path: Path) -> None:
    session = bound(tmp_path)
    x = rows(2)
    session.run({"x": x})
    kept = x.copy()
    session.run({"x": rows(2, 1)})
    np.testing.assert_array_equal(x, kept)


def test_arrays_are_read_right_when_they_are_strided_or_byte_swapped(tmp_path: Path) -> None:
    session = bound(tmp_path)
    wide = np.zeros((2, 8), np.float32)
    wide[:, ::2] = rows(2)
    for odd in (wide[:, ::2], np.asfortranarray(rows(2)), rows(2).astype(rows(2).dtype.newbyteorder())):
        np.testing.assert_array_equal(session.run({"x": odd})["minus"], -rows(2))


def test_memory_is_taken_once_for_a_shape(tmp_path: Path) -> None:
    session = bound(tmp_path)
    for batch in (2, 5, 2, 5, 2):
        session.run({"x": rows(batch)})
    assert asked == [(2, 4)] * 3 + [(5, 4)] * 3


def test_memory_of_the_shape_that_rested_longest_goes_when_there_are_many(tmp_path: Path) -> None:
    session = bound(tmp_path)
    for batch in range(1, MOST_SHAPES + 1):
        session.run({"x": rows(batch)})
    session.run({"x": rows(1)})
    session.run({"x": rows(MOST_SHAPES + 1)})
    asked.clear()
    session.run({"x": rows(1)})
    assert asked == []
    np.testing.assert_array_equal(session.run({"x": rows(2)})["minus"], -rows(2))
    assert asked == [(2, 4)] * 3


def test_output_is_right_when_its_shape_depends_on_the_data(tmp_path: Path) -> None:
    session = bound(tmp_path, LOOSE)
    for seed in range(4):
        x = rows(3, seed) * (np.arange(12).reshape(3, 4) % (seed + 2) == 0)
        got = session.run({"x": x.astype(np.float32)})
        np.testing.assert_array_equal(got["where"], np.argwhere(x))
        np.testing.assert_array_equal(got["minus"], -x)


def test_scalars_keep_their_shape(tmp_path: Path) -> None:
    session = bound(tmp_path, NET.replace("[batch,4]", ""))
    assert session.run({"x": np.float32(3).reshape(())})["square"].shape == ()


def test_a_second_shape_is_refused_when_a_cuda_graph_was_recorded(tmp_path: Path) -> None:
    session = bound(tmp_path, cuda_graph=True)
    session.run({"x": rows(2)})
    with pytest.raises(UsageError, match=r"shape \[2, 4\] alone, not \[3, 4\]"):
        session.run({"x": rows(3)})
    np.testing.assert_array_equal(session.run({"x": rows(2, 1)})["minus"], -rows(2, 1))


def test_an_output_of_unknown_shape_is_refused_when_a_cuda_graph_is_to_be_recorded(tmp_path: Path) -> None:
    session = bound(tmp_path, LOOSE, cuda_graph=True)
    with pytest.raises(UsageError, match=r"'where' is \['found', 2\]"):
        session.run({"x": rows(2)})


def test_run_raises_backend_error_with_the_node_when_a_kernel_fails(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[n,m] x, int64[k] shape) => (float[a,b] y) { y = Reshape(x, shape) }"""
    session = bound(tmp_path, text)
    with pytest.raises(BackendError, match="Reshape"):
        session.run({"x": np.ones((2, 3), np.float32), "shape": np.array([5, 5])})
    got = session.run({"x": np.ones((2, 3), np.float32), "shape": np.array([3, 2])})
    assert got["y"].shape == (3, 2)


def test_closed_session_raises_when_it_runs_or_times(tmp_path: Path) -> None:
    session = bound(tmp_path)
    session.close()
    for call in (lambda: session.run({"x": rows(1)}), lambda: session.parts({"x": rows(1)}, 0)):
        with pytest.raises(BackendError, match="closed"):
            call()


def test_resident_run_reads_what_was_put_and_leaves_its_output_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = bound(tmp_path)
    run = session.resident({"x": rows(2, 1)})
    for method in ("put", "take"):
        monkeypatch.setattr(ort_binding.Binding, method, lambda *_: pytest.fail("a copy"))
    run()
    monkeypatch.undo()
    binding = session._bound._binding({"x": rows(2)})  # type: ignore[union-attr]
    np.testing.assert_array_equal(binding.take()["minus"], -rows(2, 1))


def test_parts_are_empty_when_the_session_shares_the_hosts_memory(tmp_path: Path) -> None:
    backend = OnnxRuntimeBackend()
    file = backend.compile(ir.from_proto(onnx.parser.parse_model(NET)), tmp_path, RunOptions())[0]
    with backend.open(file, RunOptions()) as session:
        assert session.parts({"x": rows(2)}, 0) == {}
        with pytest.raises(UsageError):
            session.parts({"x": rows(2)[0]}, 0)


def test_parts_give_each_part_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = bound(tmp_path)
    now = 0.0

    def taking(seconds: float, method: str) -> None:
        real = getattr(ort_binding.Binding, method)

        def slow(*args: Any) -> Any:
            nonlocal now
            now += seconds
            return real(*args)

        monkeypatch.setattr(ort_binding.Binding, method, slow)

    for seconds, method in ((1.0, "put"), (10.0, "compute"), (100.0, "take")):
        taking(seconds, method)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    taken = session.parts({"x": rows(2)}, 20 * 111)
    assert {name: set(seconds) for name, seconds in taken.items()} == {
        "h2d": {1.0},
        "compute": {10.0},
        "d2h": {100.0},
        "latency": {111.0},
    }
    assert len(taken["latency"]) == 20
    assert len(session.parts({"x": rows(2)}, 0)["h2d"]) == ort_binding.FEWEST


def test_parts_wait_for_the_device_within_their_own_time(tmp_path: Path) -> None:
    session = bound(tmp_path)
    session.run({"x": rows(2)})
    binding = session._bound._binding({"x": rows(2)})  # type: ignore[union-attr]
    calls: list[str] = []

    class Spy:
        def __init__(self, real: Any) -> None:
            self.real = real

        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(self.real, name)

    binding._native_binding = Spy(binding._native_binding)
    binding.put({"x": rows(2)})
    assert calls == ["synchronize_inputs"]
    binding._native = Spy(binding._native)
    binding._native.run_with_iobinding = lambda _: calls.append("run")
    binding.compute()
    assert calls[-2:] == ["run", "synchronize_outputs"]


SETTINGS = [
    ("cuda", {"device_id": "1", "enable_cuda_graph": "1"}, Place("cuda", 1), True),
    ("cuda", {}, Place("cuda"), False),
    ("tensorrt", {"trt_cuda_graph_enable": "True", "enable_cuda_graph": "0"}, Place("cuda"), True),
    ("tensorrt", {"trt_cuda_graph_enable": "0"}, Place("cuda"), False),
]


@pytest.mark.parametrize(("provider", "settings", "place", "graph"), SETTINGS)
def test_runs_are_bound_to_the_gpu_of_the_options(
    provider: str, settings: Mapping[str, str], place: Place, graph: bool, tmp_path: Path
) -> None:
    session = bound(tmp_path)
    runs = bound_runs(session.native, session.inputs, session.outputs, provider, settings)
    assert runs is not None
    assert (runs._place, runs._cuda_graph) == (place, graph)
    assert runs.launch == ("one CUDA graph a run" if graph else "no CUDA graph")


def test_runs_are_not_bound_when_the_provider_has_no_memory_of_its_own_or_does_not_lend_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = bound(tmp_path)
    monkeypatch.setattr(ort_binding, "lends", lambda place: False)
    for provider in ("cpu", "openvino", "migraphx"):
        assert bound_runs(session.native, session.inputs, session.outputs, provider, {}) is None
    with pytest.raises(UsageError, match="CUDA graph"):
        bound_runs(session.native, session.inputs, session.outputs, "tensorrt-rtx", {"enable_cuda_graph": "1"})


def test_runs_are_not_bound_when_a_device_cannot_hold_an_input(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        g (string[n] x) => (string[n] y) { y = Identity(x) }"""
    session = bound(tmp_path, text)
    assert bound_runs(session.native, session.inputs, session.outputs, "cuda", {}) is None
