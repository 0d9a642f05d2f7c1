"""Data sets on fixtures of the published layouts: what is prepared, what is refused, and the drawing order."""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskdm.config.params import Data
from maskdm.datasets import fashion_mnist
from maskdm.datasets.prepare import prepare
from maskdm.datasets.prepared import PreparedData, read, sample_order
from maskdm.runtime.errors import MaskDMError
from tests.raw_data import grey_levels, image_bytes, levels, place, prepared, settings, tar_of

RNG = np.random.default_rng(0)


def digits(**changes: Any) -> Data:
    return settings("digits", **{"image_size": 8, "channels": 1, "holdout": 300} | changes)


# --- Fashion-MNIST ----------------------------------------------------------------------------------------


@pytest.fixture
def idx_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """Four small files of the real layout, whose checksums are the expected ones; no other source has them."""
    arrays = [RNG.integers(256, size=(6, 28, 28)), np.arange(6), RNG.integers(256, size=(4, 28, 28)), np.arange(4)]
    files, checksums = {}, {}
    for name, array in zip(fashion_mnist.CHECKSUMS, arrays, strict=True):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        content = header + array.astype(np.uint8).tobytes()
        files[name] = gzip.compress(content)
        checksums[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(fashion_mnist, "CHECKSUMS", checksums)
    monkeypatch.setattr(fashion_mnist, "PACKAGE_FOLDER", tmp_path / "no-package")
    monkeypatch.setattr(urllib.request, "urlopen", _refuse)
    monkeypatch.setattr(subprocess, "run", _refuse_to_run)
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    return files


def _refuse(*_: Any, **__: Any) -> Any:
    raise OSError("Network is unreachable")


def _refuse_to_run(command: list[str], **_: Any) -> Any:
    raise subprocess.CalledProcessError(100, command, stderr="W: a warning\nE: Unable to locate package\n")


def fashion(**changes: Any) -> Data:
    return settings("fashion_mnist", **{"image_size": 32, "channels": 1} | changes)


def test_fashion_mnist_is_padded_and_keeps_its_own_split(idx_files: dict[str, bytes], tmp_path: Path) -> None:
    place(tmp_path / "mine", idx_files)
    data = prepared(fashion(root=str(tmp_path / "mine")), tmp_path)
    assert data.train.shape == (6, 1, 32, 32)
    assert data.heldout.shape == (4, 1, 32, 32)
    raw = np.frombuffer(gzip.decompress(idx_files["train-images-idx3-ubyte.gz"]), np.uint8, offset=16)
    assert data.train_labels is not None
    for image, label in zip(data.train, data.train_labels, strict=True):  # in the fixture an image's label is its index
        np.testing.assert_array_equal(image[0, 2:-2, 2:-2], raw.reshape(6, 28, 28)[label])
        assert image.sum() == image[0, 2:-2, 2:-2].sum()
    assert data.info["num_classes"] == 10
    assert data.info["source"] == f"folder {tmp_path / 'mine'}"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "truncated"),
        (lambda path: path.write_bytes(gzip.compress(b"something else")), "SHA-256"),
    ],
    ids=["missing", "truncated", "wrong"],
)
def test_a_bad_file_in_the_users_folder_is_named_and_no_other_source_is_tried(
    idx_files: dict[str, bytes], tmp_path: Path, damage: Callable[[Path], Any], says: str
) -> None:
    place(tmp_path / "raw" / "fashion_mnist", idx_files)
    mine = place(tmp_path / "mine", idx_files)
    damage(mine / "t10k-labels-idx1-ubyte.gz")
    with pytest.raises(MaskDMError, match=rf"mine/t10k-labels-idx1-ubyte.gz.*{says}"):
        prepared(fashion(root=str(mine)), tmp_path)


def test_without_any_source_one_line_says_what_each_answered(idx_files: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(MaskDMError) as error:
        prepared(fashion(), tmp_path)
    message = str(error.value)
    assert "\n" not in message
    for said in ("raw/fashion_mnist", "no-package", "Network is unreachable", "Unable to locate package", "data.root"):
        assert said in message
    assert not (tmp_path / "prepared").exists()


def test_a_download_fetches_only_what_is_not_there_yet(
    idx_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = place(tmp_path / "raw" / "fashion_mnist", idx_files)
    (home / "train-labels-idx1-ubyte.gz").unlink()
    (home / "t10k-labels-idx1-ubyte.gz").write_bytes(b"half of it")
    asked = []

    class Answer(io.BytesIO):
        headers: dict[str, str] = {}  # noqa: RUF012

    def answer(url: str, timeout: float) -> Answer:
        asked.append(url.rsplit("/", 1)[1])
        return Answer(idx_files[asked[-1]])

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    first = prepared(fashion(), tmp_path).info
    assert asked == ["train-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    assert first["source"].startswith("official download")
    monkeypatch.setattr(urllib.request, "urlopen", _refuse)
    assert prepared(fashion(), tmp_path).info == first  # from raw/, which remembers where it came from
    assert sorted(path.name for path in home.iterdir()) == sorted([*idx_files, "source.txt"])


def test_the_debian_package_is_unpacked_after_an_update_of_private_lists(
    idx_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], cwd: Path, **_: Any) -> None:
        if command[0] == "dpkg-deb":
            place(cwd / fashion_mnist.PACKAGE_FOLDER.relative_to("/"), idx_files)
        elif "download" in command:
            if not (cwd / "lists" / "filled").exists():
                _refuse_to_run(command)
            (cwd / "package.deb").touch()
        else:
            (cwd / "lists" / "filled").touch()

    monkeypatch.setattr(subprocess, "run", run)
    assert prepared(fashion(), tmp_path).info["source"].startswith("Debian package")
    assert (tmp_path / "raw" / "fashion_mnist" / "t10k-labels-idx1-ubyte.gz").is_file()


# --- CIFAR-10 ---------------------------------------------------------------------------------------------


def cifar_files() -> dict[str, bytes]:
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    files = {}
    for level, name in enumerate(names):
        batch = {b"data": np.full((2, 3072), level, np.uint8), b"labels": [level, 9]}
        files[f"cifar-10-batches-py/{name}"] = pickle.dumps(batch, protocol=2)
    return files


def cifar(**changes: Any) -> Data:
    return settings("cifar10", **{"image_size": 32} | changes)


def test_cifar10_reads_the_same_from_the_archive_and_from_its_folder(tmp_path: Path) -> None:
    place(tmp_path / "raw" / "cifar10", cifar_files())
    from_folder = prepared(cifar(), tmp_path)
    (tmp_path / "archive").mkdir()
    tar_of(tmp_path / "archive" / "cifar-10-python.tar.gz", cifar_files())
    from_archive = prepared(cifar(root=str(tmp_path / "archive")), tmp_path)
    assert from_folder.info["sha256"] == from_archive.info["sha256"]
    assert from_archive.train.shape == (10, 3, 32, 32)
    assert from_archive.heldout.tolist() == np.full((2, 3, 32, 32), 5).tolist()
    assert from_archive.train_labels is not None
    assert sorted(from_archive.train_labels) == [0, 1, 2, 3, 4, 9, 9, 9, 9, 9]
    assert list(from_archive.info["files"]) == ["cifar-10-python.tar.gz"]


def test_a_batch_pickled_by_python_2_is_read(tmp_path: Path) -> None:
    """The published batches are: their bytes are text to Python 3, and NumPy's module has moved since."""
    pixels = RNG.integers(256, size=(2, 3072), dtype=np.uint8)
    batch = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + pixels.nbytes.to_bytes(4, "little") + pixels.tobytes() + b"tbU\x06labels](K\x03K\x08eu."
    )
    place(tmp_path / "raw" / "cifar10", cifar_files() | {"cifar-10-batches-py/test_batch": batch})
    data = prepared(cifar(), tmp_path)
    assert data.heldout_labels is not None
    found = {int(label): image.tobytes() for label, image in zip(data.heldout_labels, data.heldout, strict=True)}
    assert found == {3: pixels[0].tobytes(), 8: pixels[1].tobytes()}


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "evil",)

    files = cifar_files() | {"cifar-10-batches-py/test_batch": pickle.dumps({"data": Evil()}, protocol=2)}
    place(tmp_path / "raw" / "cifar10", files)
    with pytest.raises(MaskDMError, match="test_batch"):
        prepared(cifar(), tmp_path)
    assert not (tmp_path / "evil").exists()


def test_a_truncated_archive_and_a_missing_batch_are_named(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    tar_of(archive, cifar_files())
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(MaskDMError, match=r"cifar-10-python\.tar\.gz: truncated"):
        prepared(cifar(root=str(archive)), tmp_path)
    files = cifar_files()
    del files["cifar-10-batches-py/data_batch_3"]
    place(tmp_path / "raw" / "cifar10", files)
    with pytest.raises(MaskDMError, match="data_batch_3"):
        prepared(cifar(), tmp_path)


def test_an_archive_member_outside_the_archive_is_refused(tmp_path: Path) -> None:
    tar_of(tmp_path / "images.tar.gz", {str(tmp_path / "escaped.png"): image_bytes(0)})
    with pytest.raises(MaskDMError, match=r"escaped\.png points outside"):
        prepared(settings("image_folder", root=str(tmp_path / "images.tar.gz"), holdout=1), tmp_path)
    assert not (tmp_path / "escaped.png").exists()


# --- folders and archives of images -----------------------------------------------------------------------


def test_images_are_centre_cropped_and_resized(tmp_path: Path) -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 16:48] = (200, 100, 50)  # the central square; what lies beside it must not be seen
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    place(tmp_path / "raw" / "image_folder", {"a.png": image_bytes(0), "sub/b.png": file.getvalue()})
    colour = prepared(settings("image_folder", holdout=1), tmp_path)
    assert colour.images.shape == (2, 3, 16, 16)
    assert np.unique(colour.images, axis=0)[1].tolist() == np.full((16, 16, 3), [200, 100, 50]).T.tolist()
    grey = prepared(settings("image_folder", holdout=1, channels=1), tmp_path)
    assert np.unique(grey.images).tolist() == [0, round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]
    assert grey.labels is None
    assert not (tmp_path / "prepared" / "labels.npy").exists()


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "image_folder"
    folder.mkdir(parents=True)
    for level in (100, 101):
        Image.fromarray(np.full((20, 20), level * 256, np.uint16)).save(folder / f"{level}.png")
    assert np.unique(prepared(settings("image_folder", holdout=1), tmp_path).images).tolist() == [100, 101]


def test_corrupt_images_are_named_and_the_rest_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = io.BytesIO()
    Image.fromarray(RNG.integers(256, size=(40, 40, 3), dtype=np.uint8)).save(noise, "JPEG")
    corrupt = {"cut.jpg": noise.getvalue()[:-300], "empty.png": b"", "text.jpg": b"not an image"}
    place(tmp_path / "raw" / "image_folder", grey_levels(6) | corrupt)
    data = prepared(settings("image_folder", holdout=2), tmp_path)
    assert data.info["left_out"] == {"unreadable": {"count": 3, "first": sorted(corrupt)}}
    assert data.info["skipped"] == sorted(corrupt)
    said = capsys.readouterr().err
    assert all(said.count(f"left out: {name}: ") == 1 for name in corrupt)
    assert (data.info["train"], data.info["heldout"]) == (4, 2)
    assert sorted(levels(data.images)) == list(range(6))


def test_only_corrupt_images_are_an_error(tmp_path: Path) -> None:
    place(tmp_path / "raw" / "image_folder", {"a.png": b"", "b.png": b"x"})
    with pytest.raises(MaskDMError, match=r"too few images.*unreadable: 2 \(a\.png, b\.png\)"):
        prepared(settings("image_folder", holdout=1), tmp_path)


def test_a_zip_reads_like_its_folder(tmp_path: Path) -> None:
    place(tmp_path / "raw" / "ffhq", grey_levels(5, "images1024x1024/") | {"thumbnails128x128/000.png": b"other"})
    from_folder = prepared(settings("ffhq", holdout=2), tmp_path)
    with zipfile.ZipFile(tmp_path / "ffhq.zip", "w") as archive:
        for name, content in (grey_levels(5, "images1024x1024/") | {"__MACOSX/._000.png": b"no image"}).items():
            archive.writestr(name, content)
    from_zip = prepared(settings("ffhq", holdout=2, root=str(tmp_path / "ffhq.zip")), tmp_path)
    assert from_zip.info["sha256"] == from_folder.info["sha256"]
    assert (from_zip.info["files_found"], from_folder.info["files_found"]) == (6, 6)
    assert from_zip.info["left_out"] == {"hidden": {"count": 1, "first": ["__MACOSX/._000.png"]}}
    outside = {"count": 1, "first": ["thumbnails128x128/000.png"]}
    assert from_folder.info["left_out"] == {"outside of images1024x1024": outside}
    digest = hashlib.sha256((tmp_path / "ffhq.zip").read_bytes()).hexdigest()
    assert from_zip.info["files"] == {"ffhq.zip": digest}


def test_a_truncated_zip_is_named(tmp_path: Path) -> None:
    path = place(tmp_path / "raw" / "celebahq", {"faces.zip": b"PK\x03\x04 and no end"}) / "faces.zip"
    with pytest.raises(MaskDMError, match=f"{path}: truncated"):
        prepared(settings("celebahq", holdout=1), tmp_path)


def celeba(tmp_path: Path, partition: str) -> Path:
    files = {f"img_align_celeba/{index:06d}.jpg": image_bytes(30 * index, (178, 218), "JPEG") for index in range(6)}
    return place(tmp_path / "raw" / "celeba", files | {"list_eval_partition.txt": partition.encode()})


def test_celeba_holds_out_the_validation_and_test_images_of_its_partition(tmp_path: Path) -> None:
    celeba(tmp_path, "".join(f"{index:06d}.jpg {part}\n" for index, part in enumerate((0, 0, 1, 2, 0, 2))))
    data = prepared(settings("celeba"), tmp_path)
    assert sorted(round(image.mean() / 30) for image in data.train) == [0, 1, 4]
    assert sorted(round(image.mean() / 30) for image in data.heldout) == [2, 3, 5]


@pytest.mark.parametrize(
    ("partition", "says"),
    [
        ("000000.jpg 0\n", "000001.jpg has no line in list_eval_partition.txt"),
        ("".join(f"{index:06d}.jpg 0\n" for index in range(8)), "2 images .* are missing, the first is 000006.jpg"),
        ("000000.jpg train\n", "line 1"),
    ],
)
def test_a_partition_that_does_not_fit_the_images_is_named(tmp_path: Path, partition: str, says: str) -> None:
    celeba(tmp_path, partition)
    with pytest.raises(MaskDMError, match=says):
        prepared(settings("celeba"), tmp_path)


def test_a_partition_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    raw, archive = celeba(tmp_path, "000000.jpg 0\n"), tmp_path / "celeba.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(raw.rglob("*.*")):
            file.write(path, path.relative_to(raw))
    archive.write_bytes(archive.read_bytes().replace(b".jpg 0\n", b".jpg 1\n"))  # its checksum tells
    with pytest.raises(MaskDMError, match=r"^list_eval_partition\.txt: cannot read it: Bad CRC-32"):
        prepared(settings("celeba", root=str(archive)), tmp_path)


def test_celeba_without_its_partition_needs_a_holdout(tmp_path: Path) -> None:
    (celeba(tmp_path, "") / "list_eval_partition.txt").unlink()
    with pytest.raises(MaskDMError, match=r"data\.holdout=null.*allowed: 1 to 5"):
        prepared(settings("celeba"), tmp_path)
    assert len(prepared(settings("celeba", holdout=2), tmp_path).heldout) == 2


def test_vggface2_labels_are_the_identity_folders(tmp_path: Path) -> None:
    faces = {f"train/n{identity:06d}/{index:04d}_01.png": image_bytes(10 * identity)
             for identity in (2, 7, 9) for index in range(3)}  # fmt: skip
    (tmp_path / "raw" / "vggface2").mkdir(parents=True)
    tar_of(tmp_path / "raw" / "vggface2" / "vggface2_train.tar.gz", faces)
    data = prepared(settings("vggface2", holdout=2), tmp_path)
    assert data.info["class_names"] == ["n000002", "n000007", "n000009"]
    assert data.labels is not None
    assert levels(data.images) == [(2, 7, 9)[label] for label in data.labels]
    assert not list((tmp_path / "prepared").glob("scratch*"))


def test_a_root_may_have_a_tilde_and_environment_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path / "home" / "images", grey_levels(4))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FACES", "images")
    for root in ("~/images", "$HOME/${FACES}", "~/$FACES"):
        data = prepared(settings("image_folder", root=root, holdout=1), tmp_path)
        assert data.info["source"] == f"folder {tmp_path / 'home' / 'images'}"
    with pytest.raises(
        MaskDMError, match=f"^{tmp_path / 'home' / 'faces'}: no such folder"
    ):  # the path, as `ls` wants it
        prepared(settings("image_folder", root="~/faces", holdout=1), tmp_path)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "image_folder"])
@pytest.mark.parametrize(
    ("root", "says"),
    [
        ("$NOWHERE/images", "environment variable NOWHERE is not set"),
        ("a/${NOWHERE}", "environment variable NOWHERE is not set"),
        ("~no-such-user/images", "no home folder ~no-such-user"),
        ("$EMPTY", "this is empty"),
    ],
)
def test_a_root_that_cannot_be_expanded_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, root: str, says: str
) -> None:
    monkeypatch.setenv("EMPTY", "")
    size = {"image_size": 32, "channels": 1 if name == "fashion_mnist" else 3}
    with pytest.raises(MaskDMError) as error:
        prepared(settings(name, root=root, holdout=1, **size), tmp_path)
    assert str(error.value).startswith(f"data.root={root}")
    assert says in str(error.value)


@pytest.mark.parametrize("root", [".", "..", "data", "data/prepared", "link"])
def test_a_root_that_holds_the_project_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    project = place(tmp_path / "project", grey_levels(4, "reports/"))
    (project / "link").symlink_to(project)
    monkeypatch.chdir(project)
    with pytest.raises(MaskDMError, match=rf"data\.root={root}: .* holds the project's own data/prepared"):
        prepare(settings("image_folder", root=root, holdout=1), Path("data/prepared"), Path("data/raw"))
    info = prepare(settings("image_folder", root="reports", holdout=1), Path("data/prepared"), Path("data/raw"))
    assert info["train"] == 3


def test_a_root_that_links_to_itself_is_missing(tmp_path: Path) -> None:
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(MaskDMError, match="round: no such folder"):
        prepared(settings("image_folder", root=str(tmp_path / "round"), holdout=1), tmp_path)


@pytest.mark.parametrize("name", ["image_folder", "cifar10", "celeba", "celebahq", "ffhq", "lsun_church", "vggface2"])
def test_missing_data_says_what_to_place_where(tmp_path: Path, name: str) -> None:
    with pytest.raises(MaskDMError) as error:
        prepared(settings(name, image_size=32, holdout=1), tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'raw' / name}: ")
    assert "place there: " in message
    assert "https://" in message or name == "image_folder"
    assert "\n" not in message


# --- split, writing, reading ------------------------------------------------------------------------------


def test_images_of_a_mapped_file_are_those_at_the_indices(tmp_path: Path) -> None:
    data = prepared(digits(), tmp_path)
    for images in (data.train, data.heldout, np.array(data.heldout)):
        indices = np.array([len(images) - 1, 0, 7, 7, 250])
        np.testing.assert_array_equal(read(images, indices), np.array(images)[indices])


def test_the_split_is_disjoint_and_a_smaller_training_set_is_nested(tmp_path: Path) -> None:
    place(tmp_path / "raw" / "image_folder", grey_levels(20))
    everything = prepared(settings("image_folder", holdout=6), tmp_path)
    assert sorted(levels(everything.images)) == list(range(20))
    assert (len(everything.train), len(everything.heldout)) == (14, 6)
    assert levels(everything.train) != sorted(levels(everything.train))
    train, heldout = levels(everything.train), levels(everything.heldout)
    fewer = prepared(settings("image_folder", holdout=6, train_images=5), tmp_path)
    assert levels(fewer.train) == train[:5]
    assert levels(fewer.heldout) == heldout


def test_digits_are_scaled_and_labelled(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    data = prepared(digits(), tmp_path)
    assert (len(data.train), len(data.heldout)) == (1497, 300)
    assert (data.images.min(), data.images.max()) == (0, 255)
    of_scikit = {
        (image.astype(int).tobytes(), label) for image, label in zip(*load_digits(return_X_y=True), strict=True)
    }
    assert data.labels is not None
    ours = np.round(data.images.reshape(-1, 64) * (16 / 255)).astype(int)
    assert {(image.tobytes(), label) for image, label in zip(ours, data.labels, strict=True)} == of_scikit


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (digits(holdout=None), r"data\.holdout=null"),
        (digits(holdout=1797), r"data\.holdout=1797.*allowed: 1 to 1796"),
        (digits(train_images=1498), r"data\.train_images=1498.*at most 1497"),
        (digits(image_size=16), r"data\.image_size=16.*allowed: 8"),
        (digits(channels=3), r"data\.channels=3.*allowed: 1"),
        (digits(root="somewhere"), r"data\.root=somewhere"),
        (fashion(image_size=64), r"data\.image_size=64.*allowed: 32"),
        (cifar(channels=1), r"data\.channels=1.*allowed: 3"),
    ],
)
def test_settings_that_do_not_fit_the_data_set_are_named(tmp_path: Path, data: Data, says: str) -> None:
    with pytest.raises(MaskDMError, match=says):
        prepared(data, tmp_path)


def test_a_holdout_for_a_set_with_its_own_split_is_refused(tmp_path: Path) -> None:
    place(tmp_path / "raw" / "cifar10", cifar_files())
    with pytest.raises(MaskDMError, match=r"data\.holdout=1 .*allowed: null \(it has 2 held-out"):
        prepared(cifar(holdout=1), tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_preparing_twice_gives_the_same_bytes_and_the_hash_of_them(tmp_path: Path) -> None:
    data = prepared(digits(), tmp_path)
    first = contents(tmp_path / "prepared")
    prepared(digits(), tmp_path)
    assert contents(tmp_path / "prepared") == first
    assert sorted(first) == ["dataset.json", "images.npy", "labels.npy"]
    assert data.info["sha256"] == hashlib.sha256(first["images.npy"] + first["labels.npy"]).hexdigest()
    plain = io.BytesIO()
    np.save(plain, np.asarray(data.images))
    assert first["images.npy"] == plain.getvalue()


def test_a_prepare_that_fails_keeps_the_old_folder_and_says_what_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(digits(), tmp_path)
    before = contents(tmp_path / "prepared")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", fail)
        with pytest.raises(MaskDMError, match=r"prepared: No space left .*; what is decoded stays in .*\.partial: "):
            prepared(digits(holdout=5), tmp_path)
        patch.setattr(os, "posix_fallocate", fail)
        with pytest.raises(MaskDMError, match=r"decoded: No space left on device: the images take 115.1 kB"):
            prepared(digits(holdout=6), tmp_path)
    assert contents(tmp_path / "prepared") == before
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


def test_what_a_killed_prepare_left_is_cleared_away(tmp_path: Path) -> None:
    place(tmp_path / ".prepared.partial" / "scratch", {"unpacked/half.png": b""})
    assert len(prepared(digits(), tmp_path).heldout) == 300
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("images.npy", lambda path: path.unlink(), "no such file"),
        ("images.npy", lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated"),
        ("labels.npy", lambda path: path.write_bytes(path.read_bytes()[:50]), "truncated"),
        ("labels.npy", lambda path: np.save(path, np.zeros(5, np.int64)), r"dataset\.json says int64 \[1797\]"),
        ("dataset.json", lambda path: path.unlink(), "no such file"),
        ("dataset.json", lambda path: path.write_bytes(path.read_bytes()[:-9]), "not valid JSON"),
        ("dataset.json", lambda path: path.write_text(json.dumps({"name": "digits"})), "source is missing"),
    ],
)
def test_a_damaged_prepared_file_is_named(tmp_path: Path, file: str, damage: Callable[[Path], Any], says: str) -> None:
    prepare(digits(), tmp_path / "prepared", tmp_path / "raw")
    damage(tmp_path / "prepared" / file)
    with pytest.raises(MaskDMError, match=f"{file}.*{says}"):
        PreparedData.open(tmp_path / "prepared")


def test_the_images_stay_on_disk(tmp_path: Path) -> None:
    data = prepared(digits(), tmp_path)
    assert isinstance(data.train, np.memmap)
    assert not data.train.flags.writeable


# --- drawing order ----------------------------------------------------------------------------------------


def test_every_image_comes_once_an_epoch_in_another_order_each_time() -> None:
    first, second = sample_order(3, 50, 0, 100).reshape(2, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first.tolist() != second.tolist()
    assert first.tolist() != sample_order(4, 50, 0, 50).tolist()


@pytest.mark.parametrize("batch", [1, 7, 50, 64, 170])
def test_the_order_does_not_depend_on_how_it_is_cut_into_batches(batch: int) -> None:
    whole = sample_order(3, 50, 0, 340)
    pieces = [sample_order(3, 50, start, min(batch, 340 - start)) for start in range(0, 340, batch)]
    assert np.concatenate(pieces).tolist() == whole.tolist()
    assert sample_order(3, 50, 123, 45).tolist() == whole[123:168].tolist()
    assert sample_order(3, 50, 123, 0).shape == (0,)


def test_the_order_is_not_changed_by_what_a_caller_does_with_it() -> None:
    drawn = sample_order(5, 20, 0, 20)
    before = drawn.copy()
    drawn[:] = 0
    assert sample_order(5, 20, 0, 20).tolist() == before.tolist()
