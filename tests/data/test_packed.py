"""Items of batches: images as they are, or sequences of them."""

from __future__ import annotations

import numpy as np
import pytest

from vitdeploy.data.image_set import open_images, synthetic_set
from vitdeploy.data.packed import cuts, item, item_type
from vitdeploy.data.synthetic import synthetic_image, synthetic_images
from vitdeploy.errors import UsageError
from vitdeploy.graph.feeds import feeds, finite
from vitdeploy.spec import InputSpec, Packing

PACKED = InputSpec((3, 32, 48), packing=Packing(patch_size=8, length=60, slots=5))


def test_image_is_its_own_item() -> None:
    image = synthetic_image(InputSpec((3, 8, 8)), 0, 1)
    assert item(image, InputSpec((3, 8, 8))) is image
    batch = synthetic_images(InputSpec((3, 8, 8)), 2)
    assert feeds(batch, "image")["image"] is batch
    assert np.zeros(2, item_type(InputSpec((3, 8, 8)))).shape == (2, 3, 8, 8)


def test_sequence_holds_the_image_and_cuts_of_it() -> None:
    image = synthetic_image(PACKED, 0, 1)
    sequence = item(image, PACKED)
    assert sequence.dtype == item_type(PACKED)
    patches, positions, ids = (sequence[name] for name in ("patches", "positions", "image_ids"))
    assert patches.shape == (60, 3 * 64)
    whole = patches[:24].reshape(4, 6, 3, 8, 8).transpose(2, 0, 3, 1, 4).reshape(3, 32, 48)
    assert np.array_equal(whole, image)
    assert positions[:24].tolist() == [[row, column] for row in range(4) for column in range(6)]
    assert not patches[ids == -1].any()
    parts = cuts(image, PACKED.packing)  # type: ignore[arg-type]
    assert 1 < len(parts) <= 5
    for number, part in enumerate(parts):
        there = ids == number
        rows, columns = (side // 8 for side in part.shape[1:])
        assert int(there.sum()) == rows * columns
        assert positions[there].max(axis=0).tolist() == [rows - 1, columns - 1]
        first = part[:, :8, :8].reshape(-1)
        assert np.array_equal(patches[there][0], first)
        assert any(np.array_equal(first, patch) for patch in patches[:24])
    assert np.array_equal(item(image, PACKED), sequence)


def test_sets_give_sequences() -> None:
    drawn = synthetic_images(PACKED, 5, seed=3)
    assert drawn.shape == (5,)
    batches = [batch for batch, _ in synthetic_set(PACKED, 5, seed=3).batches(2)]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert np.array_equal(np.concatenate(batches), drawn)
    assert [(name, array.shape) for name, array in feeds(drawn, "").items()] == [
        ("patches", (5, 60, 192)),
        ("positions", (5, 60, 2)),
        ("image_ids", (5, 60)),
    ]


def test_numbers_that_are_not_finite_are_found() -> None:
    drawn = synthetic_images(PACKED, 3)
    drawn["patches"][1, 2, 3] = np.nan
    assert finite(drawn).tolist() == [True, False, True]
    assert finite(np.array([[0.0], [np.inf]])).tolist() == [True, False]


def test_tensors_of_an_array_are_packed(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("packed") / "images.npy"
    images = np.stack([synthetic_image(PACKED, i, 2) for i in range(2)])
    np.save(path, images)
    ((batch, _),) = open_images(path, PACKED).batches(8)
    assert np.array_equal(batch, np.stack([item(image, PACKED) for image in images]))


def test_spec_tells_its_packing() -> None:
    assert InputSpec.from_dict(PACKED.to_dict()) == PACKED
    assert PACKED.kind == "packed images"
    assert "sequences of 60 patches and 5 images" in str(PACKED)
    for wrong in ({"patch_size": 8, "length": 0, "slots": 1}, {"patch_size": 8}, {"patch_size": "8", "length": 1}, 3):
        with pytest.raises(UsageError):
            InputSpec.from_dict({**PACKED.to_dict(), "packing": wrong})
