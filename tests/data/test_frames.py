"""Camera frames to and from images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data.frames import as_input, to_frame, to_image
from vitdeploy.data.image_set import open_images
from vitdeploy.errors import UsageError
from vitdeploy.spec import FRAME_FORMATS, Frame, InputSpec


def picture(height: int, width: int) -> Image.Image:
    coarse = np.random.default_rng(height).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", ["rgb", "rgba", "bgra"])
def test_frame_shows_the_picture_that_it_was_made_of(name: str) -> None:
    image = picture(31, 40)
    frame = to_frame(image, Frame(name))
    assert frame.shape == (31, 40, 3 if name == "rgb" else 4)
    np.testing.assert_array_equal(np.asarray(to_image(frame, Frame(name))), np.asarray(image))
    assert frame[..., 3:].size == 0 or (frame[..., 3] == 255).all()
    assert np.array_equal(frame[..., 0], np.asarray(image)[..., 2 if name == "bgra" else 0])


def test_nv21_shows_what_pillow_makes_of_its_planes() -> None:
    """JFIF's full range, with the chroma of 2 x 2 pixels."""
    frame = np.random.default_rng(0).integers(0, 256, (36, 32), dtype=np.uint8)
    red, blue = frame[24:, 0::2].repeat(2, 0).repeat(2, 1), frame[24:, 1::2].repeat(2, 0).repeat(2, 1)
    planes = [Image.fromarray(np.ascontiguousarray(part)) for part in (frame[:24], blue, red)]
    expected = np.asarray(Image.merge("YCbCr", planes).convert("RGB")).astype(int)
    got = np.asarray(to_image(frame, Frame("nv21"))).astype(int)
    assert np.abs(got - expected).max() <= 1


def test_nv21_of_an_odd_picture_leaves_its_last_row_and_column_out() -> None:
    flat = Image.new("RGB", (41, 31), (200, 100, 50))
    frame = to_frame(flat, Frame("nv21"))
    assert frame.shape == (45, 40)
    assert np.abs(np.asarray(to_image(frame, Frame("nv21"))).astype(int) - (200, 100, 50)).max() <= 2
    with pytest.raises(UsageError, match="too small"):
        to_frame(Image.new("RGB", (1, 5)), Frame("nv21"))


def test_frame_of_a_size_is_filled_and_what_stands_out_is_cut() -> None:
    image = Image.new("RGB", (100, 300))
    image.paste((255, 255, 255), (0, 100, 100, 200))
    shown = np.asarray(to_image(to_frame(image, Frame("rgb", (60, 60))), Frame("rgb", (60, 60))))
    assert shown.shape == (60, 60, 3)
    assert shown.mean() > 250


@pytest.mark.parametrize(
    ("format", "size"), [("yuv", None), ("rgb", (0, 5)), ("rgb", (5,)), ("nv21", (30, 31)), ("rgb", (5, 1 << 20))]
)
def test_frame_that_cannot_be_is_refused(format: str, size: tuple[int, ...] | None) -> None:
    with pytest.raises(UsageError):
        Frame(format, size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=["type", "channels", "rank", "empty"],
)
def test_array_that_is_no_frame_is_refused(array: np.ndarray) -> None:
    with pytest.raises(UsageError, match="no frame"):
        to_image(array, Frame("rgb"))


def test_spec_with_a_frame_survives_json_and_tells_its_input() -> None:
    for frame in (Frame("rgb"), Frame("nv21", (48, 64)), *(Frame(name, (48, 64)) for name in FRAME_FORMATS)):
        spec = InputSpec((3, 32, 32), frame=frame)
        assert InputSpec.from_dict(spec.to_dict()) == spec
        (tensor,) = spec.tensors
        assert tensor.dtype == "uint8"
        assert to_frame(picture(48, 64), frame).shape == tensor.example or frame.size is None
    with pytest.raises(UsageError, match="Not an input specification"):
        InputSpec.from_dict({**InputSpec().to_dict(), "frame": {"format": "rgb", "size": 5}})


def test_set_gives_frames_one_by_one_in_their_own_sizes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for i, size in enumerate([(20, 31), (45, 12)]):
        picture(*size).save(tmp_path / f"{i}.png")
    chosen = open_images(tmp_path, InputSpec((3, 16, 16), frame=Frame("rgb")))
    assert [batch.shape for batch, _ in chosen.batches(1)] == [(1, 20, 31, 3), (1, 45, 12, 3)]
    with pytest.raises(UsageError, match="one by one"):
        next(chosen.batches(2))
    plain = as_input(picture(20, 31), InputSpec((3, 16, 16)))
    assert plain.shape == (3, 16, 16)
