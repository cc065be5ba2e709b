from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data.images import decode, normalise, preprocess, preprocess_array, resized_size
from vitdeploy.errors import UsageError
from vitdeploy.spec import InputSpec

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def _noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def _corner_marked() -> np.ndarray:
    """A 4x6 image whose corners have four different colours, so that every turn and flip is told apart."""
    pixels = np.full((4, 6, 3), 128, dtype=np.uint8)
    pixels[0, 0], pixels[0, -1], pixels[-1, 0], pixels[-1, -1] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
    return pixels


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
        (0, lambda a: a),
        (99, lambda a: a),
    ],
)
def test_decode_turns_upright_when_exif_says_so(tmp_path: Path, orientation: int, upright) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(_corner_marked()).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "a.png")), upright(_corner_marked()))


def test_decode_keeps_pixels_when_exif_is_mangled(tmp_path: Path) -> None:
    Image.fromarray(_noise(8, 8)).save(tmp_path / "a.png", exif=b"Exif\0\0not a tiff header at all")
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "a.png")), _noise(8, 8))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "RGB", "CMYK", "YCbCr"])
def test_decode_equals_plain_convert_when_mode_is(tmp_path: Path, mode: str) -> None:
    original = Image.fromarray(_noise(16, 12, 4)).convert("RGBA")
    suffix = ".tif" if mode in ("CMYK", "YCbCr") else ".png"
    (original.convert("RGB") if mode in ("CMYK", "YCbCr", "P", "1") else original).convert(mode).save(
        tmp_path / f"a{suffix}"
    )
    with Image.open(tmp_path / f"a{suffix}") as image:
        expected = np.asarray(image.convert("RGB"))
    decoded = decode(str(tmp_path / f"a{suffix}"))
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), expected)


def test_decode_ignores_alpha_when_pixels_are_transparent(tmp_path: Path) -> None:
    pixels = _noise(8, 8, 4)
    pixels[..., 3] = 0
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "a.png")), pixels[..., :3])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_decode_keeps_the_high_byte_when_grey_is_16_bit(tmp_path: Path, suffix: str) -> None:
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    expected = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=-1)
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / f"a{suffix}")), expected)


def test_decode_takes_the_first_frame_when_animated(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    red.save(tmp_path / "a.gif", save_all=True, append_images=[blue])
    assert np.asarray(decode(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


def _missing(path: Path) -> None:
    pass


def _text(path: Path) -> None:
    path.write_text("this is no image")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _truncated(path: Path) -> None:
    Image.fromarray(_noise(64, 64)).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:3000])


def _header_only(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR")


def _bomb(path: Path) -> None:
    """A PNG header that claims 60000 x 60000 pixels."""
    import zlib

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    body = struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + struct.pack(">I", len(data) - 4) + data + b"\0\0\0\0")


def _float(path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(path, format="TIFF")


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (_missing, "No such"),
        (Path.mkdir, "is a folder"),
        (_text, "not an image"),
        (_empty, "not an image"),
        (_truncated, "damaged"),
        (_header_only, "image"),
        (_bomb, "too many pixels"),
        (_float, "32-bit"),
    ],
)
def test_decode_raises_usage_error_naming_the_file_when(tmp_path: Path, write, says: str) -> None:
    write(tmp_path / "holiday.png")
    with pytest.raises(UsageError, match=says) as caught:
        decode(tmp_path / "holiday.png")
    assert "holiday.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_decode_raises_usage_error_when_jpeg_is_truncated(tmp_path: Path) -> None:
    Image.fromarray(_noise(64, 64)).save(tmp_path / "a.jpg", quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match="damaged"):
        decode(tmp_path / "a.jpg")


def test_preprocess_gives_exact_pixels_when_nothing_is_resized() -> None:
    pixels = _noise(8, 10)
    spec = InputSpec(shape=(3, 8, 10), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop_pct=1.0)
    result = preprocess(Image.fromarray(pixels), spec)
    expected = (pixels / 255.0 - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.3, 0.4])
    assert result.dtype == np.float32
    assert result.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(result, expected.transpose(2, 0, 1), atol=1e-6)


def test_preprocess_crops_the_centre_when_image_is_wide() -> None:
    pixels = _noise(8, 13)
    result = preprocess(Image.fromarray(pixels), InputSpec(shape=(3, 8, 8), crop_pct=1.0, **PLAIN))
    np.testing.assert_allclose(result.transpose(1, 2, 0) * 255, pixels[:, 2:10], atol=1e-4)  # round(2.5) is 2


def test_preprocess_squash_keeps_all_columns_when_image_is_wide() -> None:
    pixels = np.zeros((8, 64, 3), dtype=np.uint8)
    pixels[:, :8] = 255
    spec = InputSpec(shape=(3, 8, 8), crop_pct=1.0, interpolation="box", crop_mode="squash", **PLAIN)
    result = preprocess(Image.fromarray(pixels), spec)
    np.testing.assert_allclose(result[0, 0], [1, 0, 0, 0, 0, 0, 0, 0])


def test_preprocess_border_pads_with_the_mean_when_image_is_wide() -> None:
    spec = InputSpec(shape=(3, 8, 8), mean=(0.2, 0.4, 0.6), std=(1.0,), crop_pct=1.0, crop_mode="border")
    result = preprocess(Image.new("RGB", (16, 8), "white"), spec)
    assert np.abs(result[:, :2]).max() < 1 / 255
    assert np.abs(result[:, -2:]).max() < 1 / 255
    np.testing.assert_allclose(result[:, 4, 4], [0.8, 0.6, 0.4], atol=1e-6)


def test_preprocess_gives_luminance_when_spec_has_one_channel() -> None:
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    result = preprocess(image, InputSpec(shape=(1, 8, 8), mean=(0.0,), std=(1.0,), crop_pct=1.0))
    assert result.shape == (1, 8, 8)
    np.testing.assert_allclose(result, round(255 * 0.299) / 255, atol=1e-6)


@pytest.mark.parametrize("spec", [InputSpec(shape=(4, 8, 8), mean=(0.5,), std=(0.5,)), InputSpec(channel_order="BGR")])
def test_preprocess_raises_usage_error_when_channels_are_unknown(spec: InputSpec) -> None:
    with pytest.raises(UsageError, match="RGB"):
        preprocess(Image.new("RGB", (8, 8)), spec)


def test_preprocess_raises_usage_error_when_image_is_a_thread() -> None:
    with pytest.raises(UsageError, match="elongated"):
        preprocess(Image.new("RGB", (60000, 1)), InputSpec())


@pytest.mark.parametrize(
    ("size", "spec", "expected"),
    [
        ((480, 640), InputSpec(crop_pct=0.875), (256, 341)),
        ((640, 480), InputSpec(crop_pct=0.875), (341, 256)),
        ((333, 500), InputSpec(crop_pct=0.9), (248, 372)),
        ((480, 640), InputSpec(shape=(3, 224, 320), crop_pct=1.0), (240, 320)),
        ((480, 640), InputSpec(crop_pct=1.0, crop_mode="squash"), (224, 224)),
        ((480, 640), InputSpec(crop_pct=1.0, crop_mode="border"), (168, 224)),
        ((1, 4000), InputSpec(crop_pct=1.0, crop_mode="border"), (1, 224)),
    ],
)
def test_resized_size_follows_timm_when(size: tuple[int, int], spec: InputSpec, expected: tuple[int, int]) -> None:
    assert resized_size(*size, spec) == expected


@pytest.mark.parametrize("shape", [(3, 20, 30), (3, 20, 30, 1), (3, 20, 30, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_preprocess_array_equals_preprocess_when_shape_is(shape: tuple[int, ...], channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    spec = InputSpec(shape=(channels, 16, 16), mean=(0.4,), std=(0.3,))
    result = preprocess_array(images, spec)
    assert result.shape == (3, channels, 16, 16)
    assert result.dtype == np.float32
    for array, row in zip(images, result, strict=True):
        np.testing.assert_array_equal(row, preprocess(Image.fromarray(array.squeeze()), spec))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((8, 8), np.uint8),
        np.zeros((0, 8, 8), np.uint8),
        np.zeros((2, 8, 8, 3, 1), np.uint8),
    ],
)
def test_preprocess_array_raises_usage_error_when_array_is_wrong(images: np.ndarray) -> None:
    with pytest.raises(UsageError, match="uint8"):
        preprocess_array(images, InputSpec())


def test_normalise_reaches_the_ends_when_pixels_are_black_and_white() -> None:
    pixels = np.array([[0, 255]], dtype=np.uint8)
    result = normalise(pixels, InputSpec(shape=(1, 1, 2), mean=(0.5,), std=(0.5,)))
    np.testing.assert_array_equal(result, [[[-1.0, 1.0]]])
