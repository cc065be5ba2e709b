from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.errors import UsageError
from vitdeploy.graph import wire
from vitdeploy.graph.load import check_external_data, external_files, load

WEIGHT = np.arange(32 * 16, dtype=np.float32).reshape(32, 16)


def proto(weight: np.ndarray = WEIGHT) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def send_out(tensor: TensorProto, **place: str) -> TensorProto:
    """Make `tensor` an external one at `place`."""
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def written(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refuse(path: Path, match: str) -> None:
    """Both doors must refuse, with the path in one line."""
    for door in (load, check_external_data):
        with pytest.raises(UsageError, match=match) as caught:
            door(path)
        assert str(path) in caught.value.message
        assert "\n" not in caught.value.message


def test_load_gives_the_graph_when_the_file_is_sound(tmp_path: Path) -> None:
    model = load(written(tmp_path, proto()))
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), WEIGHT)
    assert [n.op_type for n in model.graph] == ["MatMul"]


def test_load_refuses_when_the_path_is_no_file(tmp_path: Path) -> None:
    refuse(tmp_path / "none.onnx", "No such model file")
    refuse(tmp_path, "a folder or a device")
    (tmp_path / "empty.onnx").touch()
    refuse(tmp_path / "empty.onnx", "is empty")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.onnx")
        refuse(tmp_path / "pipe.onnx", "a folder or a device")


@pytest.mark.parametrize(
    "content",
    [b"hello, this is text", b"\x00" * 64, b"\xff" * 64, b"PK\x03\x04 a zip", b"\x08\x0a", b"\x0b\x0c", b"\x3a\x00"],
)
def test_load_refuses_when_the_file_is_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    refuse(path, "not an ONNX model")


def test_load_refuses_when_the_message_is_another_protobuf(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(proto().graph.SerializeToString())
    refuse(path, "not an ONNX model")


def test_load_refuses_when_the_file_is_cut_short_anywhere(tmp_path: Path) -> None:
    whole = proto().SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        refuse(path, "not an ONNX model|not a valid|damaged")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_load_raises_only_usage_errors_when_bytes_are_flipped(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(proto(WEIGHT[:, :2]).SerializeToString())
    content[0:0] = data.draw(st.binary(max_size=3))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    for door in (load, check_external_data):
        with contextlib.suppress(UsageError):
            door(path)


def test_load_refuses_when_names_do_not_meet(tmp_path: Path) -> None:
    model = proto()
    model.graph.node[0].input[0] = "ghost"
    refuse(written(tmp_path, model), "reads 'ghost'")
    model = proto()
    model.graph.output[0].name = "ghost"
    refuse(written(tmp_path, model), "output 'ghost'")
    model = proto()
    model.graph.node.append(model.graph.node[0])
    refuse(written(tmp_path, model), "made twice")


def test_load_refuses_when_a_weight_does_not_fill_its_shape(tmp_path: Path) -> None:
    model = proto()
    model.graph.initializer[0].dims[0] = 33
    with pytest.raises(UsageError, match="'w' does not hold"):
        load(written(tmp_path, model))
    model.graph.initializer[0].dims[0] = -32
    refuse(written(tmp_path, model), "shape")
    model.graph.initializer[0].data_type = 99
    refuse(written(tmp_path, model), "type 99")


SIZE = str(WEIGHT.nbytes)


def with_data(folder: Path, **place: str) -> Path:
    model = proto()
    send_out(model.graph.initializer[0], **place)
    return written(folder, model)


def test_load_maps_external_data_when_it_lies_inside(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"12345678" + WEIGHT.tobytes())
    path = with_data(tmp_path, location="sub/w.bin", offset="8", length=SIZE)
    tensor = load(path).graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    np.testing.assert_array_equal(tensor.numpy(), WEIGHT)
    check_external_data(path)
    assert external_files(path) == [tmp_path / "sub" / "w.bin"]


def test_load_finds_external_data_when_the_path_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    with_data(tmp_path, location="w.bin")
    monkeypatch.chdir(tmp_path)
    model = load(Path("model.onnx"))
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), WEIGHT)


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "../secret.bin",
        "sub/../../secret.bin",
        "./w.bin",
        "sub//w.bin",
        "",
        ".",
        "..",
        "..\\secret.bin",
        "\\\\host\\share",
        "C:\\secret.bin",
        "C:secret.bin",
        "w.bin\0.txt",
        "w\n.bin",
        "w.bin:stream",
        "*/_ORT_MEM_ADDR_/*",
        "w\u202enib.bin",
    ],
)
def test_load_refuses_when_a_location_is_not_a_plain_inner_path(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "w.bin").write_bytes(WEIGHT.tobytes())
    refuse(with_data(folder, location=location, length=SIZE), "'w' lies outside")


def test_load_refuses_when_a_link_leads_outside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.bin").write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(outside / "secret.bin")
    refuse(with_data(folder, location="link.bin"), "lies outside")
    (folder / "dir").symlink_to(outside)
    refuse(with_data(folder, location="dir/secret.bin"), "lies outside")
    (folder / "loop").symlink_to("loop")
    refuse(with_data(folder, location="loop"), "lies outside|missing")
    os.link(outside / "secret.bin", folder / "hard.bin")
    refuse(with_data(folder, location="hard.bin"), "hard link")


def test_load_accepts_a_link_when_it_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "link.bin").symlink_to("w.bin")
    check_external_data(with_data(tmp_path, location="link.bin"))


def test_load_refuses_when_the_data_is_missing_or_too_short(tmp_path: Path) -> None:
    refuse(with_data(tmp_path, location="w.bin"), "'w' is missing")
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes()[:-1])
    refuse(with_data(tmp_path, location="w.bin"), "'w' is cut short")
    refuse(with_data(tmp_path, location="w.bin", length="100"), "100 bytes long; its shape needs 2048")
    (tmp_path / "folder").mkdir()
    refuse(with_data(tmp_path, location="folder"), "not in a plain file")


@pytest.mark.parametrize("number", ["-1", "9" * 30, "1e3", "0x10", " 1", "", "²", "18446744073709551615"])
def test_load_refuses_when_an_offset_is_no_sane_number(tmp_path: Path, number: str) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    refuse(with_data(tmp_path, location="w.bin", offset=number), "offset|cut short")
    refuse(with_data(tmp_path, location="w.bin", length=number), "offset|bytes long|cut short")


def test_load_refuses_when_a_place_is_given_twice(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    model = proto()
    send_out(model.graph.initializer[0], location="w.bin").external_data.add(key="location", value="/etc/passwd")
    refuse(written(tmp_path, model), "no one place")


def test_load_refuses_when_a_stray_location_is_not_marked_external(tmp_path: Path) -> None:
    model = proto()
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    refuse(written(tmp_path, model), "lies outside")


def hidden_places() -> dict[str, onnx.ModelProto]:
    """Models that hold one hostile tensor somewhere else than among the main graph's weights."""

    def hostile() -> TensorProto:
        return send_out(numpy_helper.from_array(np.zeros(4, np.float32), "h"), location="../secret.bin")

    def constant(name: str = "c", tensor: TensorProto | None = None) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=tensor or hostile())

    models = {place: proto() for place in ("attribute", "subgraph", "subgraph weight", "function", "sparse", "list")}
    models["attribute"].graph.node.append(constant())
    inner = helper.make_graph([constant("i")], "inner", [], [helper.make_tensor_value_info("i", 1, [4])])
    branch = helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner)
    models["subgraph"].graph.node.append(branch)
    weighted = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("h", 1, [4])], [hostile()])
    models["subgraph weight"].graph.node.append(
        helper.make_node("If", ["x"], ["z"], then_branch=weighted, else_branch=weighted)
    )
    models["function"].functions.append(
        helper.make_function("local", "f", [], ["c"], [constant()], [helper.make_opsetid("", 20)])
    )
    indices = numpy_helper.from_array(np.arange(4), "i")
    models["sparse"].graph.sparse_initializer.append(helper.make_sparse_tensor(hostile(), indices, [8]))
    models["list"].graph.node.append(helper.make_node("Anything", [], ["c"], domain="x", values=[hostile()]))
    return models


@pytest.mark.parametrize("place", list(hidden_places()))
def test_load_refuses_when_a_hostile_location_is_hidden(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    refuse(written(folder, hidden_places()[place]), "'h' lies outside")


def test_load_brings_inner_tensors_in_when_they_are_external(tmp_path: Path) -> None:
    (tmp_path / "c.bin").write_bytes(np.array([1, 2, 3, 4], np.float32).tobytes())
    model = proto()
    tensor = send_out(numpy_helper.from_array(np.zeros(4, np.float32), "c"), location="c.bin")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    read = load(written(tmp_path, model))
    (tmp_path / "c.bin").unlink()
    constant = next(n for n in read.graph if n.op_type == "Constant")
    assert constant.attributes["value"].as_tensor().numpy().tolist() == [1, 2, 3, 4]


def test_load_refuses_when_weights_are_sparse(tmp_path: Path) -> None:
    model = proto()
    values = numpy_helper.from_array(np.ones(2, np.float32), "s")
    indices = numpy_helper.from_array(np.arange(2), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [8]))
    with pytest.raises(UsageError, match="sparse"):
        load(written(tmp_path, model))


def test_without_weights_keeps_all_but_the_large_data(tmp_path: Path) -> None:
    model = proto()
    model.graph.initializer.append(numpy_helper.from_array(np.arange(8), "small"))
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    expected.graph.initializer[0].ClearField("raw_data")
    stripped = onnx.ModelProto.FromString(wire.without_weights(model.SerializeToString()))
    assert stripped == expected
