"""A data set's images of some classes alone, as for the transfer to a class that was not seen."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from maskdm.datasets.raw import RawImages
from maskdm.runtime.errors import MaskDMError


def of_classes(raw_images: RawImages, names: Sequence[str]) -> RawImages:
    """The images of the classes `names`; labels stay what they are in the whole set.

    Raises:
        MaskDMError: the set has no classes, or none of such a name.
    """
    if raw_images.labels is None or raw_images.class_names is None:
        raise MaskDMError(
            f"data.classes={','.join(names)}: {raw_images.source} has no classes; "
            "allowed: null, or data.labels: folders with a folder a class"
        )
    for name in names:
        if name not in raw_images.class_names:
            raise MaskDMError(f"data.classes: no class {name!r}; allowed: {', '.join(raw_images.class_names)}")
    chosen = np.isin(raw_images.labels, [raw_images.class_names.index(name) for name in names])
    places = np.flatnonzero(chosen).tolist()
    read, call, own_names = raw_images.read, raw_images.call, raw_images.names
    return replace(
        raw_images,
        count=len(places),
        read=lambda index: read(places[index]),
        call=None if call is None else lambda index: call(places[index]),
        labels=raw_images.labels[places],
        heldout=None if raw_images.heldout is None else raw_images.heldout[places],
        names=None if own_names is None else [own_names[place] for place in places],
    )
