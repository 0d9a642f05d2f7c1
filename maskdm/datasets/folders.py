"""Image folders, or archives of images, that the user has placed: any folder, and the published sets of the paper."""

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from maskdm.config.params import Data
from maskdm.datasets.encoded import classes, decode, encoded_images, modified
from maskdm.datasets.images import is_image
from maskdm.datasets.layout import Layout
from maskdm.datasets.left_out import NOT_IMAGES, UNREADABLE, in_words
from maskdm.datasets.raw import RawImages, UnreadableImageError, raw_place
from maskdm.datasets.trees import Tree, open_tree
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import file_sha256, reason
from maskdm.runtime.progress import bar_interval

OWN_IMAGES = "allowed: a folder or an archive of images"  # where any will do
PARTITION_FILE = "list_eval_partition.txt"  # CelebA's: a line an image, 0 training, 1 validation, 2 test


@dataclass(frozen=True)
class FolderSet:
    """A data set of plain image files."""

    place: str  # what the user has to place, and where it comes from
    main_folder: str | None = None  # where a download holds other images too: the folder to read
    identities: bool = False  # whether the folder of an image is its class
    own_layout: bool = False  # whether its folders may be a split or classes: `Layout`


FOLDER_SETS = {
    "image_folder": FolderSet("images, in any folder structure", own_layout=True),
    "celeba": FolderSet(
        f"img_align_celeba.zip, or its folder, and {PARTITION_FILE} from "
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        main_folder="img_align_celeba",
    ),
    "celebahq": FolderSet(
        "the images, or CelebAMask-HQ.zip from https://github.com/switchablenorms/CelebAMask-HQ",
        main_folder="CelebA-HQ-img",
    ),
    "ffhq": FolderSet(
        "the folder images1024x1024, or thumbnails128x128, from https://github.com/NVlabs/ffhq-dataset",
        main_folder="images1024x1024",
    ),
    "lsun_church": FolderSet(
        "the folder church_outdoor_train_lmdb of https://www.yf.io/p/lsun, unpacked, or its images as files"
    ),
    "vggface2": FolderSet(
        "vggface2_train.tar.gz, or its folder with one folder an identity, from https://github.com/ox-vgg/vgg_face2",
        identities=True,
    ),
}


class Listing(NamedTuple):
    """The images of a data set, before any of them is read."""

    tree: Tree
    layout: Layout
    names: list[str]  # sorted; each file once


def load(data: Data, raw: Path, scratch: Path) -> RawImages:
    """List every image below `data.root` or `raw/<name>`, sorted by name; reading one crops and resizes it.

    Raises:
        MaskDMError: there are no images, the archive is damaged, CelebA's partition does not fit the images, or an
            image has no class.
    """
    place = raw_place(data, raw)
    tree, layout, names = list_images(data.name, place, scratch)
    labels, class_names = _labels(names, data, layout)
    heldout = np.array([layout.is_heldout(name) for name in names]) if layout.heldout else None
    return encoded_images(
        data,
        file=lambda index: tree.file(names[index]),
        source=f"{'folder' if tree.path.is_dir() else 'archive'} {tree.path}",
        files=_checksums(tree, names),
        labels=labels,
        class_names=class_names,
        heldout=_celeba_heldout(tree, place, names) if data.name == "celeba" else heldout,
        names=names,
        left_out=tree.left_out,
        version=modified(tree.files[name].modified for name in names),
    )


def list_images(name: str, place: Path, scratch: Path) -> Listing:
    """List the images of the set `name` at `place`; a tar archive is unpacked in `scratch`.

    Raises:
        MaskDMError: there are no images, or the archive is damaged.
        OSError: the folder may not be read.
    """
    kind = FOLDER_SETS[name]
    remedy = f"place there: {kind.place}; or set data.root to the folder or archive that holds them"
    tree, images = _open(place, kind, scratch, remedy)
    layout = Layout.of(images) if kind.own_layout else Layout()
    if layout.heldout:
        images = _only(tree, images, list(layout.heldout), "train and test")
    return Listing(tree, layout, tree.once(images, first=layout.is_heldout))


def read_folder(place: Path, image_size: int, channels: int, count: int | None = None) -> np.ndarray:
    """Images of a folder or archive as training would see them, whatever the project's data set is.

    Args:
        place: images in any folder structure; a file that is none is left out, a damaged one with a line that says so.
        image_size, channels: what each is brought to (`square_pixels`).
        count: at most so many, a fixed choice; None: all.

    Returns:
        uint8 `[n, channels, image_size, image_size]`, in the order of the names.

    Raises:
        MaskDMError: there is no such place, or there are no images in it.
    """
    with TemporaryDirectory() as scratch:
        try:
            tree, found = _open(place, FOLDER_SETS["image_folder"], Path(scratch), OWN_IMAGES)
        except OSError as error:
            raise MaskDMError(f"{place}: cannot read it: {reason(error)}") from None
        names = tree.once(found, first=lambda _: False)
        if count is not None and count < len(names):
            chosen = np.random.default_rng(0).permutation(len(names))[:count]  # names may be sorted by class
            names = [names[index] for index in np.sort(chosen)]
        images = []
        for name in tqdm(names, disable=not names, desc=place.name, unit="image", mininterval=bar_interval()):
            try:
                images.append(decode(tree.file(name), name, image_size, channels))
            except UnreadableImageError as error:
                tree.left_out.add(UNREADABLE, name, error.reason)
        if not images:
            raise MaskDMError(_no_images(place, tree, OWN_IMAGES))
        return np.stack(images)


def _open(place: Path, kind: FolderSet, scratch: Path, remedy: str) -> tuple[Tree, list[str]]:
    """The files at a place, and the names of the images among them, at least one.

    Raises:
        MaskDMError: there are none, or the archive is damaged.
        OSError: the folder may not be read.
    """
    tree = open_tree(place, lambda name: is_image(name) or name.endswith(".mdb"), scratch)
    images = _images_of(tree, kind) if tree else []
    if not tree or not images:
        raise MaskDMError(_no_images(place, tree, remedy))
    return tree, images


def _no_images(place: Path, tree: Tree | None, remedy: str) -> str:
    if tree is None:
        return f"{place}: no such folder or archive; {remedy}"
    found = f" ({in_words(tree.left_out.summary())})" if tree.left_out else ""
    return f"{place}: no images{found}; {remedy}"


def _images_of(tree: Tree, kind: FolderSet) -> list[str]:
    """List the images of the data set."""
    images = [name for name in tree.files if is_image(name)]
    if not images and any(name.endswith(".mdb") for name in tree.files):  # LSUN as it is downloaded
        raise MaskDMError(
            f"{tree.path}: an LMDB; allowed: its folder, unpacked, with data.name: lmdb (of LSUN: lsun_church)"
        )
    for name in tree.files.keys() - set(images):
        tree.left_out.add(NOT_IMAGES, name)
    inside = [name for name in images if kind.main_folder in PurePosixPath(name).parts[:-1]]
    return _only(tree, images, inside, kind.main_folder) if inside else images


def _only(tree: Tree, images: list[str], inside: list[str], folder: str | None) -> list[str]:
    """The images inside of a folder, of all images; the others are left out."""
    for name in set(images) - set(inside):
        tree.left_out.add(f"outside of {folder}", name)
    return inside


def _labels(names: list[str], data: Data, layout: Layout) -> tuple[np.ndarray | None, list[str] | None]:
    """The class of each image as a number, int64 [n], and the sorted names of the classes; None: there are none."""
    if FOLDER_SETS[data.name].identities:
        return classes([_identity(name) for name in names])
    if data.labels is not None:
        return classes([layout.class_of(name) for name in names])
    return None, None


def _identity(name: str) -> str:
    folder = PurePosixPath(name).parent.name
    if not folder:
        raise MaskDMError(f"{name}: allowed: one folder an identity, with its images inside")
    return folder


def _checksums(tree: Tree, names: list[str]) -> dict[str, str]:
    """SHA-256 of the archive; of a folder, which may hold millions of files, that of its listing `size name`."""
    if not tree.path.is_dir():
        return {tree.path.name: file_sha256(tree.path)}
    listing = "".join(f"{tree.files[name].size} {name}\n" for name in names)
    return {
        f"sizes and names of {len(names)} images": hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
    }


def _celeba_heldout(tree: Tree, place: Path, names: list[str]) -> np.ndarray | None:
    """CelebA's own split, if its partition file is there: bool [n], true for validation and test images.

    Both are held out. Nothing is tuned on one of them and reported on the other here, and the more unseen
    images there are, the smaller is the noise of what is measured on them.
    """
    partition = _partition(tree, place)
    if partition is None:
        return None
    parts = []
    for name in names:
        if PurePosixPath(name).name not in partition:
            raise MaskDMError(f"{tree.path}: {name} has no line in {PARTITION_FILE}")
        parts.append(partition.pop(PurePosixPath(name).name))
    if partition:
        raise MaskDMError(
            f"{tree.path}: {len(partition)} images of {PARTITION_FILE} are missing, the first is {min(partition)}"
        )
    return np.array(parts, dtype=np.int64) > 0


def _partition(tree: Tree, place: Path) -> dict[str, int] | None:
    """File name -> part, from the partition file among the images' files or beside them."""
    inside = sorted(name for name in tree.files if PurePosixPath(name).name == PARTITION_FILE)
    beside = [path for path in (place / PARTITION_FILE, place.parent / PARTITION_FILE) if path.is_file()]
    if not inside and not beside:
        return None
    where = inside[0] if inside else str(beside[0])
    try:
        content = tree.read(inside[0]) if inside else beside[0].read_bytes()
    except Exception as error:  # in a damaged archive nearly any
        raise MaskDMError(f"{where}: cannot read it: {reason(error)}") from None
    partition = {}
    for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1):
        match line.split():
            case [name, "0" | "1" | "2" as part]:
                partition[name] = int(part)
            case []:
                pass
            case _:
                raise MaskDMError(f"{where}: line {number}: allowed: an image's name and 0, 1 or 2, got {line!r}")
    return partition
