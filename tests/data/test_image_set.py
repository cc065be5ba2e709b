"""Image sets: where images come from, which labels they have, what becomes of those that cannot be read."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data.image_set import ImageSet, open_images, synthetic_set
from vitdeploy.data.images import decode, preprocess
from vitdeploy.data.labels import class_indices, imagenet1k
from vitdeploy.data.list_file import read_list
from vitdeploy.data.synthetic import synthetic_images
from vitdeploy.errors import UsageError
from vitdeploy.spec import InputSpec

SPEC = InputSpec(shape=(3, 16, 16))


def save(path: Path, seed: int = 0, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, format="TIFF" if mode == "CMYK" else "PNG")
    return path


def everything(images: ImageSet, size: int = 2) -> tuple[np.ndarray, np.ndarray | None]:
    arrays, labels = zip(*images.batches(size), strict=True)
    return np.concatenate(arrays), None if labels[0] is None else np.concatenate(labels)


def expected(paths: Sequence[Path], spec: InputSpec = SPEC) -> np.ndarray:
    return np.stack([preprocess(decode(path), spec) for path in paths])


@pytest.fixture
def classes_folder(tmp_path: Path) -> Path:
    for i, name in enumerate(["cat/1.png", "cat/2.png", "dog/deep/3.png", "dog/4.png", "emu/5.png"]):
        save(tmp_path / "data" / name, seed=i)
    (tmp_path / "data" / ".cache").mkdir()
    (tmp_path / "data" / ".cache" / "x.png").write_text("hidden")
    return tmp_path / "data"


# ---- sources


def test_folder_gives_preprocessed_images_and_labels_in_order(classes_folder: Path) -> None:
    images = open_images(classes_folder, SPEC, classes=["dog", "cat", "emu"], labelled=True)
    assert (images.source, len(images), images.label_rule) == ("folder", 5, "names")
    names = ["cat/1.png", "cat/2.png", "dog/4.png", "dog/deep/3.png", "emu/5.png"]
    arrays, labels = everything(images)
    np.testing.assert_array_equal(arrays, expected([classes_folder / name for name in names]))
    assert arrays.dtype == np.float32
    assert labels is not None
    assert labels.dtype == np.int64
    assert labels.tolist() == [1, 1, 0, 0, 2]
    again, _ = everything(images, 3)
    np.testing.assert_array_equal(arrays, again)


def test_flat_folder_and_single_file_have_no_labels(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.upload", seed=1)
    assert everything(open_images(tmp_path, SPEC))[1] is None
    one = open_images(tmp_path / "b.upload", SPEC)
    assert (one.source, len(one), one.labels) == ("file", 1, None)
    for path in (tmp_path, tmp_path / "b.upload"):
        with pytest.raises(UsageError, match=r"subfolder"):
            open_images(path, SPEC, labelled=True)


def test_folder_of_other_subfolders_has_no_labels_when_none_are_needed(tmp_path: Path) -> None:
    save(tmp_path / "2024" / "a.png")
    save(tmp_path / "holidays" / "b.png")
    assert open_images(tmp_path, SPEC, classes=["cat", "dog", "emu"]).labels is None


def test_every_kind_of_pixel_is_read(tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P", "CMYK", "LA", "1"):
        save(tmp_path / f"{mode}.png", mode=mode)
    arrays, _ = everything(open_images(tmp_path, SPEC))
    assert arrays.shape == (6, 3, 16, 16)
    assert np.isfinite(arrays).all()


@pytest.mark.parametrize("shape", [(5, 28, 20), (5, 28, 20, 1), (5, 8, 9, 3)])
@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_array_gives_the_same_as_files_of_its_images(tmp_path: Path, shape: tuple[int, ...], kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez_compressed(path, images=pixels, labels=np.arange(5, dtype=np.uint8))
    else:
        np.save(path, pixels)
    files = []
    for i, image in enumerate(pixels.squeeze(-1) if shape[-1] == 1 else pixels):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(files[-1])
    images = open_images(path, SPEC, num_classes=5, labelled=kind == "npz")
    arrays, labels = everything(images)
    assert images.source == kind
    np.testing.assert_array_equal(arrays, expected(files))
    assert labels is None or labels.tolist() == [0, 1, 2, 3, 4]
    assert (labels is None) == (kind == "npy")


def test_float_array_is_taken_as_it_is(tmp_path: Path) -> None:
    tensors = np.random.default_rng(0).standard_normal((5, 4, 8, 8)).astype(np.float32)
    np.save(tmp_path / "a.npy", np.asfortranarray(tensors))
    np.save(tmp_path / "big.npy", tensors.astype(">f4"))
    spec = InputSpec(shape=(4, 8, 8), mean=(0.0,), std=(1.0,))  # no image file has four channels, and none is needed
    for name in ("a.npy", "big.npy"):
        np.testing.assert_array_equal(everything(open_images(tmp_path / name, spec))[0], tensors)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 3, 8, 8), np.float32), r"tensors of shape \[3, 8, 8\], and the model takes \[3, 16, 16\]"),
        (np.zeros((2, 16, 16, 3), np.float32), r"the model takes \[3, 16, 16\]"),
        (np.zeros((2, 3, 16, 16)), "float64"),
        (np.zeros((2, 3, 16, 16), np.uint8), "must hold images, uint8"),
        (np.zeros((3, 16, 16), np.float32), "must hold images"),
        (np.zeros((0, 3, 16, 16), np.float32), "must hold images"),
        (np.zeros((0, 16, 16), np.uint8), "must hold images"),
        (np.zeros((16, 16, 3), np.uint8), r"Save one colour image as \(1, H, W, 3\)"),
        (np.float32(1), "must hold images"),
    ],
)
def test_array_of_another_shape_or_dtype_is_refused(tmp_path: Path, array: np.ndarray, says: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UsageError, match=says):
        open_images(tmp_path / "a.npy", SPEC)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_float_array_with_nan_or_inf_is_refused_by_its_index(tmp_path: Path, bad: float) -> None:
    tensors = np.zeros((6, 3, 16, 16), np.float32)
    tensors[4, 1, 2, 3] = tensors[5, 0, 0, 0] = bad
    np.save(tmp_path / "a.npy", tensors)
    with pytest.raises(UsageError, match="Image 4 of "):
        open_images(tmp_path / "a.npy", SPEC)
    assert len(open_images(tmp_path / "a.npy", SPEC, limit=2)) == 2  # images 0 and 3, which are sound


def test_damaged_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", np.zeros((4, 16, 16), np.uint8))
    data = (tmp_path / "good.npy").read_bytes()
    np.savez(tmp_path / "zip.npz", images=np.zeros((4, 16, 16), np.uint8))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    broken = {"half.npy": data[:200], "text.npy": b"hello", "empty.npy": b""}
    broken |= {"zip.npy": (tmp_path / "zip.npz").read_bytes(), "pickle.npy": (tmp_path / "pickle.npy").read_bytes()}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=rf"{name} is not a readable \.npy"):
            open_images(tmp_path / name, SPEC)


def test_synthetic_set_gives_the_synthetic_images_one_by_one() -> None:
    for count in (3, 9):
        images = synthetic_set(SPEC, count, seed=2)
        assert (images.source, images.path, images.labels) == ("synthetic", None, None)
        np.testing.assert_array_equal(everything(images, 4)[0], synthetic_images(SPEC, count, seed=2))
    with pytest.raises(UsageError):
        synthetic_set(SPEC, 0)
    with pytest.raises(UsageError):
        synthetic_set(SPEC, 1, seed=-1)


def test_missing_path_and_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or folder"):
        open_images(tmp_path / "nowhere", SPEC)
    with pytest.raises(UsageError, match="No image in"):
        open_images(tmp_path, SPEC)


@pytest.mark.parametrize("spec", [InputSpec((4, 8, 8), (0,), (1,)), InputSpec((3, 8, 8), channel_order="BGR")])
def test_spec_that_fits_no_image_file_is_refused_at_once(tmp_path: Path, spec: InputSpec) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="in RGB order"):
        open_images(tmp_path, spec)


# ---- lists


def test_list_gives_paths_relative_to_itself_with_labels(tmp_path: Path) -> None:
    paths = [save(tmp_path / "photos" / f"{i} x.png", seed=i) for i in range(4)]
    lines = ["# my list", "", "photos/0 x.png 2", f"{paths[1]}\t0", "  photos/2 x.png , 1  ", '"photos/3 x.png",1']
    (tmp_path / "list.txt").write_text("\r\n".join(lines), encoding="utf-8-sig")
    images = open_images(str(tmp_path / "list.txt"), SPEC, num_classes=3, labelled=True)
    arrays, labels = everything(images)
    assert images.source == "list"
    np.testing.assert_array_equal(arrays, expected(paths))
    assert labels is not None
    assert labels.tolist() == [2, 0, 1, 1]


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ("a.jpg", "a.jpg", None),
        ("my photo.jpg", "my photo.jpg", None),
        ("my photo.JPG golden retriever", "my photo.JPG", "golden retriever"),
        ("a, b.jpg,3", "a, b.jpg", "3"),
        ("a.jpg copy.png 3", "a.jpg copy.png", "3"),
        ("a.jpg.d/b.bmp 3", "a.jpg.d/b.bmp", "3"),
        ("photo_jpg 3", "photo_jpg", "3"),
        ("dir/photo", "dir/photo", None),
        ("there is one", "there is one", None),
        ("a.jpg,", "a.jpg", None),
        ('"a, ""b"".jpg", T-shirt/top', 'a, "b".jpg', "T-shirt/top"),
        ('a.jpg,"cat"', "a.jpg", "cat"),
        ("a\u2028b.jpg 1", "a\u2028b.jpg", "1"),
    ],
)
def test_list_line_is_split_by_the_documented_rule(tmp_path: Path, line: str, path: str, label: str | None) -> None:
    (tmp_path / "there is one").touch()
    (tmp_path / "list.lst").write_text(line + "\n", encoding="utf-8")
    assert read_list(tmp_path / "list.lst") == [(tmp_path / path, label)]


def test_head_of_a_csv_is_skipped_and_no_other_line(tmp_path: Path) -> None:
    for name, count in (("list.csv", 2), ("list.txt", 3)):
        (tmp_path / name).write_text("path,label\na.png,0\nmissing,1\n")
        assert len(read_list(tmp_path / name)) == count
    (tmp_path / "list.csv").write_text("a.png,0\n")
    assert len(read_list(tmp_path / "list.csv")) == 1


def test_missing_file_in_a_list_is_skipped_and_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text(f"a.png 0\ngone.png 1\n{'x' * 5000}.png 1\nnul\0.png 1\n")
    images = open_images(tmp_path / "list.txt", SPEC, num_classes=2, labelled=True)
    arrays, labels = everything(images)
    assert (len(images), len(arrays), images.kept) == (4, 1, [0])
    assert labels is not None
    assert labels.tolist() == [0]
    assert "gone.png" in images.skipped[0]
    assert len(images.skipped) == 3


def test_bad_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    for content, says in [
        (b"# nothing\n\n", "lists no image"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a.png 0\nb.png\n", r"gives no label for .*b\.png"),
        (b"a.png\nb.png\n", "no labels"),
        (b"a.png 0\nb.png 7\n", "go from 0 to 7, and the model has the classes 0 to 2"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UsageError, match=says):
            open_images(path, SPEC, num_classes=3, labelled=True)
    assert open_images(path, SPEC, num_classes=3).labels is None


# ---- labels


FASHION = ["T-shirt/top", "Trouser", "Ankle boot"]


@pytest.mark.parametrize(
    ("names", "classes", "count", "indices", "rule"),
    [
        (["Trouser", "T-shirt/top"], FASHION, 3, [1, 0], "names"),
        (["ankle_boot", "t_shirt_top"], FASHION, 3, [2, 0], "names"),
        (["2", "0"], FASHION, 3, [2, 0], "numbers"),
        (["002", "000"], None, None, [2, 0], "numbers"),
        (["0", "1"], ["1", "0"], 2, [1, 0], "names"),
        (["b", "c", "a"], FASHION, 3, [1, 2, 0], "order"),
        (["b", "c", "a"], None, 3, [1, 2, 0], "order"),
        (["C++", "C"], ["C", "C++"], 2, [1, 0], "names"),
    ],
)
def test_names_become_indices(
    names: list[str], classes: list[str] | None, count: int | None, indices: list[int], rule: str
) -> None:
    assert class_indices(names, classes, count) == (dict(zip(names, indices, strict=True)), rule)


@pytest.mark.parametrize(
    ("names", "classes", "count", "says"),
    [
        (["Trouser", "hat"], FASHION, 3, r"1 of the 2 class names in the data \('hat'\) fit none of the model's 3"),
        (["a", "b"], FASHION, 3, r"2 of the 2 class names in the data \('a', 'b'\) .*'T-shirt/top'"),
        (["a", "b"], None, 3, "the model's 3 classes without names"),
        (["a", "b"], None, None, "unknown names and number"),
        (["1", "2", "3"], None, 3, "go from 1 to 3, and the model has the classes 0 to 2"),
        (["1", "01"], None, 3, "'01' and '1' would both be class 1"),
        (["cat", "Cat"], ["cat", "dog"], 2, "'Cat' and 'cat' would both be class 0"),
        (["crane"], imagenet1k(), 1000, "several of the model's classes: 134, 517"),
        (["c"], ["C", "C++"], 2, "several of the model's classes: 0, 1"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    names: list[str], classes: list[str] | None, count: int | None, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        class_indices(names, classes, count)


def test_synset_folders_are_the_classes_of_imagenet_in_sorted_order() -> None:
    names = [f"n{1440764 + 7 * i:08d}" for i in range(1000)]
    indices, rule = class_indices(reversed(names), imagenet1k(), 1000)
    assert rule == "order"
    assert [indices[name] for name in names] == list(range(1000))


def test_labels_of_an_array_are_held_against_the_model(tmp_path: Path) -> None:
    for labels, says in (([0, 3], "go from 0 to 3"), ([-1, 0], "go from -1 to 0")):
        np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.array(labels))
        with pytest.raises(UsageError, match=says):
            open_images(tmp_path / "a.npz", SPEC, num_classes=3, labelled=True)
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(UsageError, match=r"no labels.*'labels'"):
        open_images(tmp_path / "a.npz", SPEC, num_classes=3, labelled=True)


# ---- limit, unreadable images, digest, memory


def test_limit_keeps_images_spread_evenly_over_the_classes(tmp_path: Path) -> None:
    for i in range(20):
        save(tmp_path / f"{i // 5}" / f"{i:02d}.png", seed=i)
    images = open_images(tmp_path, SPEC, limit=8, labelled=True)
    arrays, labels = everything(images, 3)
    assert labels is not None
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    np.testing.assert_array_equal(arrays[3], expected([tmp_path / "1" / "07.png"])[0])
    assert len(open_images(tmp_path, SPEC, limit=99)) == 20
    with pytest.raises(UsageError, match="limit of 0"):
        open_images(tmp_path, SPEC, limit=0)


def test_limit_does_not_change_what_the_classes_are(classes_folder: Path) -> None:
    images = open_images(classes_folder, SPEC, limit=1, num_classes=3, labelled=True)
    assert images.label_rule == "order"
    assert images.labels is not None
    assert images.labels.tolist() == [0]


def test_unreadable_images_are_skipped_named_and_leave_labels_in_place(classes_folder: Path) -> None:
    (classes_folder / "cat" / "1.png").write_bytes(b"not an image")
    (classes_folder / "dog" / "4.png").write_bytes((classes_folder / "dog" / "4.png").read_bytes()[:80])
    long = Image.new("RGB", (1, 60_000))
    long.save(classes_folder / "emu" / "6.png")
    spec = SPEC.with_size(224, 224)
    images = open_images(classes_folder, spec, num_classes=3, labelled=True)
    for _ in range(2):
        arrays, labels = everything(images)
        assert labels is not None
        assert labels.tolist() == [0, 1, 2]
        assert images.kept == [1, 3, 4]
        names = ("cat/2.png", "dog/deep/3.png", "emu/5.png")
        np.testing.assert_array_equal(arrays, expected([classes_folder / name for name in names], spec))
        assert len(images.skipped) == 3
        for name, sentence in zip(("cat/1.png", "dog/4.png", "emu/6.png"), images.skipped, strict=True):
            assert name in sentence
            assert sentence.endswith(".")
    strict = open_images(classes_folder, spec, strict=True)
    with pytest.raises(UsageError, match=r"1\.png is not an image"):
        list(strict.batches(2))


def test_set_is_refused_when_no_image_of_it_can_be_read(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no")
    with pytest.raises(UsageError, match=r"None of the 2 images can be read\. The first: .*a\.png"):
        list(open_images(tmp_path, SPEC).batches(4))


def test_last_batch_is_smaller_or_left_out() -> None:
    images = synthetic_set(SPEC, 5)
    assert [len(batch) for batch, _ in images.batches(2)] == [2, 2, 1]
    assert [len(batch) for batch, _ in images.batches(2, skip_last=True)] == [2, 2]
    assert [len(batch) for batch, _ in images.batches(1 << 16)] == [5]
    for size, says in ((0, "Batches of 0"), (6, "do not fill a batch of 6")):
        with pytest.raises(UsageError, match=says):
            list(images.batches(size, skip_last=True))


def test_last_batch_left_out_is_an_error_when_it_would_be_the_only_one(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no")
    with pytest.raises(UsageError, match="1 images do not fill a batch of 2"):
        list(open_images(tmp_path, SPEC).batches(2, skip_last=True))


def test_digest_follows_content_and_order_and_not_names(classes_folder: Path, tmp_path: Path) -> None:
    digest = open_images(classes_folder, SPEC).digest()
    assert digest == open_images(classes_folder, SPEC.with_size(32, 32), num_classes=3, labelled=True).digest()
    moved = Path(shutil.move(classes_folder, tmp_path / "moved"))
    assert open_images(moved, SPEC).digest() == digest
    files = [str(path) for path in sorted(moved.rglob("[0-9].png"))]
    (tmp_path / "list.txt").write_text("\n".join(files))
    (tmp_path / "back.txt").write_text("\n".join(reversed(files)))
    assert open_images(tmp_path / "list.txt", SPEC).digest() == digest
    assert open_images(tmp_path / "back.txt", SPEC).digest() != digest
    assert open_images(moved, SPEC, limit=2).digest() != digest
    save(moved / "cat" / "1.png", seed=77)
    assert open_images(moved, SPEC).digest() != digest


def test_digest_of_arrays_follows_the_array_and_not_its_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels)
    np.savez_compressed(tmp_path / "b.npz", images=pixels, labels=np.arange(3))
    np.save(tmp_path / "c.npy", pixels)
    np.save(tmp_path / "d.npy", pixels.reshape(3, 4, 16))
    digests = [open_images(tmp_path / name, SPEC).digest() for name in ("a.npz", "b.npz", "c.npy", "d.npy")]
    assert len(set(digests[:3])) == 1
    assert digests[3] != digests[0]


def test_only_the_batch_in_hand_is_in_memory(tmp_path: Path) -> None:
    spec = InputSpec(shape=(3, 128, 128))
    one = 4 * 3 * 128 * 128
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (64, 128, 128), dtype=np.uint8))
    images = open_images(tmp_path / "a.npy", spec)
    next(images.batches(1))
    tracemalloc.start()
    try:
        for batch, _ in images.batches(4):
            del batch
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 4 * one < peak < 10 * one
