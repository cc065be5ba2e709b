from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data.folder import find_images, labelled_folder, load_batch, load_npz
from vitdeploy.data.images import decode, preprocess
from vitdeploy.errors import UsageError
from vitdeploy.spec import InputSpec


def _save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


def test_find_images_gives_sorted_images_when_folder_is_nested(tmp_path: Path) -> None:
    for name in ["b/2.PNG", "a/10.jpeg", "a/1.webp", "c.png", "a/z/0.tif", "a.b/1.png"]:
        _save(tmp_path / name)
    for name in ["notes.txt", "a/._1.png", ".cache/x.png", "a/labels.json"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(str(tmp_path))]
    assert found == ["a/1.webp", "a/10.jpeg", "a/z/0.tif", "a.b/1.png", "b/2.PNG", "c.png"]


def test_find_images_gives_the_file_when_path_is_a_file(tmp_path: Path) -> None:
    path = _save(tmp_path / "photo.upload")
    assert find_images(path) == [path]


def test_find_images_follows_links_once_when_they_form_a_circle(tmp_path: Path) -> None:
    _save(tmp_path / "elsewhere/1.png")
    _save(tmp_path / "data/0.png")
    try:
        (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "data/back").symlink_to(tmp_path / "data", target_is_directory=True)
    except OSError:
        pytest.skip("no right to make links here")
    assert [path.name for path in find_images(tmp_path / "data")] == ["0.png", "1.png"]


def test_find_images_raises_usage_error_when_folder_has_none(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(UsageError, match="No image in"):
        find_images(tmp_path)
    with pytest.raises(UsageError, match="No such file or folder"):
        find_images(tmp_path / "nowhere")


def test_labelled_folder_gives_class_names_when_folders_are_classes(tmp_path: Path) -> None:
    cat, dog, deep = (_save(tmp_path / name) for name in ["cat/1.png", "dog/1.png", "cat/deep/2.png"])
    assert labelled_folder(tmp_path) == [(cat, "cat"), (deep, "cat"), (dog, "dog")]


def test_labelled_folder_raises_usage_error_when_an_image_has_no_class(tmp_path: Path) -> None:
    _save(tmp_path / "cat/1.png")
    stray = _save(tmp_path / "stray.png")
    with pytest.raises(UsageError, match="belongs to no class") as caught:
        labelled_folder(tmp_path)
    assert "stray.png" in str(caught.value)
    with pytest.raises(UsageError, match="not a folder"):
        labelled_folder(stray)


def test_load_batch_stacks_preprocessed_images_when_given_files(tmp_path: Path) -> None:
    paths = [_save(tmp_path / f"{i}.png", seed=i) for i in range(3)]
    spec = InputSpec(shape=(3, 16, 16))
    batch = load_batch(paths, spec)
    assert batch.shape == (3, 3, 16, 16)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch[2], preprocess(decode(paths[2]), spec))
    assert not np.array_equal(batch[0], batch[1])


def test_load_batch_raises_usage_error_when_empty() -> None:
    with pytest.raises(UsageError, match="No images"):
        load_batch([], InputSpec())


@pytest.mark.parametrize("shape", [(5, 28, 28), (5, 28, 28, 1), (5, 8, 9, 3)])
def test_load_npz_gives_images_and_labels_when_file_is_good(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", images=images, labels=np.arange(5, dtype=np.uint8))
    got, labels = load_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(got, images)
    assert labels is not None
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_load_npz_gives_no_labels_when_file_has_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8))
    assert load_npz(tmp_path / "a.npz")[1] is None


class _Exploit:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (os.mkdir, ("pwned",))


def test_load_npz_runs_nothing_when_file_holds_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "a.npz", images=np.array([_Exploit()], dtype=object))
    with pytest.raises(UsageError, match=r"not a readable \.npz"):
        load_npz(tmp_path / "a.npz")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((2, 4, 4), np.uint8)}, "no array named 'images'"),
        ({"images": np.zeros((2, 4, 4), np.float32)}, "must be uint8"),
        ({"images": np.zeros((4, 4), np.uint8)}, "must be uint8"),
        ({"images": np.zeros((2, 3, 4, 4), np.uint8)}, "must be uint8"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "must be uint8"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, np.int64)}, "must be 2 integers"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(2)}, "must be 2 integers"),
    ],
)
def test_load_npz_raises_usage_error_when_arrays_are_wrong(
    tmp_path: Path, arrays: dict[str, np.ndarray], says: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError, match=says):
        load_npz(tmp_path / "a.npz")


def test_load_npz_raises_usage_error_when_file_is_broken(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "good.npz", images=rng.integers(0, 256, (20, 20, 20), dtype=np.uint8))
    data = (tmp_path / "good.npz").read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    np.save(tmp_path / "array.npy", np.zeros(3))
    broken = {
        "half.npz": data[: len(data) // 2],
        "flipped.npz": bytes(flipped),
        "text.npz": b"hello",
        "empty.npz": b"",
        "array.npz": (tmp_path / "array.npy").read_bytes(),
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=name):
            load_npz(tmp_path / name)
    with pytest.raises(UsageError, match="No such"):
        load_npz(tmp_path / "missing.npz")
