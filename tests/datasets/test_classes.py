"""Images of some classes alone."""

import numpy as np
import pytest

from maskdm.datasets.classes import of_classes
from maskdm.datasets.raw import RawImages
from maskdm.runtime.errors import MaskDMError

LABELS = np.array([2, 0, 1, 2, 1, 2])
WHOLE = RawImages(
    source="made up",
    files={},
    count=6,
    read=lambda index: np.full((1, 2, 2), index, np.uint8),
    labels=LABELS,
    class_names=["cat", "dog", "T-shirt/top"],
    heldout=np.array([False, False, False, True, True, False]),
    names=list("abcdef"),
)


def test_only_images_of_the_classes_are_left_and_keep_their_labels_names_and_side() -> None:
    found = of_classes(WHOLE, ["T-shirt/top", "cat"])
    assert found.count == 4
    assert [int(found.read(index)[0, 0, 0]) for index in range(4)] == [0, 1, 3, 5]
    assert found.labels is not None
    assert found.labels.tolist() == [2, 0, 2, 2]
    assert found.names == ["a", "b", "d", "f"]
    assert found.heldout is not None
    assert found.heldout.tolist() == [False, False, True, False]
    assert found.class_names == WHOLE.class_names


def test_a_class_that_is_not_there_is_named() -> None:
    with pytest.raises(MaskDMError, match=r"data\.classes: no class 'cow'; allowed: cat, dog, T-shirt/top"):
        of_classes(WHOLE, ["cat", "cow"])
    unlabelled = RawImages("made up", {}, 6, WHOLE.read)
    with pytest.raises(MaskDMError, match=r"data\.classes=cat: made up has no classes; allowed: null"):
        of_classes(unlabelled, ["cat"])
