"""Fashion-MNIST: found on this machine or fetched, verified, and padded from 28x28 to 32x32.

Xiao, Rasul, Vollgraf 2017, https://github.com/zalandoresearch/fashion-mnist
"""

import gzip
import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskdm.config.params import Data
from maskdm.datasets.raw import RawImages, raw_place, require_shape
from maskdm.runtime.errors import MaskDMError

# SHA-256 of what the gzip files hold. The files themselves differ in their gzip header: Debian strips the name and
# the time that the official ones carry, the compressed data behind it is the same.
CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLASS_NAMES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
PAGE = "https://github.com/zalandoresearch/fashion-mnist"
OFFICIAL_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # no https there; hence the checksums
OFFICIAL = f"official download {OFFICIAL_URL}"
PACKAGE = "dataset-fashion-mnist"
DEBIAN = f"Debian package {PACKAGE}, fetched with apt-get download"
PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")
SOURCE_NOTE = "source.txt"  # beside fetched files: which source they came from
TIMEOUT = 10  # seconds without an answer before a source counts as unreachable
IMAGE_SIZE = 32
MOST = 1 << 26  # bytes: more than the largest file unpacks to


def load(data: Data, raw: Path, scratch: Path) -> RawImages:
    """Find or fetch the 60,000 training and 10,000 held-out images, grey, with labels.

    Raises:
        MaskDMError: a file below `data.root` is missing or damaged, or without `data.root` no source worked.
    """
    require_shape(data, IMAGE_SIZE, 1)
    place = raw_place(data, raw)
    if data.root is not None:
        arrays, source = _read_files(place), f"folder {place}"
    else:
        arrays, source = _first_source(place, scratch)
    train_images, train_labels, heldout_images, heldout_labels = arrays
    images = np.concatenate([train_images, heldout_images])
    margin = (IMAGE_SIZE - images.shape[-1]) // 2
    images = np.pad(images, ((0, 0), (margin, margin), (margin, margin)))[:, None]
    return RawImages(
        source=source,
        files={name.removesuffix(".gz"): checksum for name, checksum in CHECKSUMS.items()},
        count=len(images),
        read=images.__getitem__,
        labels=np.concatenate([train_labels, heldout_labels]).astype(np.int64),
        class_names=CLASS_NAMES,
        heldout=np.arange(len(images)) >= len(train_images),
    )


def _first_source(home: Path, scratch: Path) -> tuple[list[np.ndarray], str]:
    """Return the four arrays from the first source that has them, and that source's name."""
    note = home / SOURCE_NOTE
    placed = note.read_text(encoding="utf-8").strip() if note.is_file() else f"folder {home}"
    sources: list[tuple[str, Callable[[], Path]]] = [
        (placed, lambda: home),
        (f"folder {PACKAGE_FOLDER} of the Debian package {PACKAGE}", lambda: PACKAGE_FOLDER),
        (OFFICIAL, lambda: _download(home)),
        (DEBIAN, lambda: _download_package(home, scratch)),
    ]
    complaints = []
    for source, find in sources:
        try:
            arrays = _read_files(find())
        except MaskDMError as error:
            complaints.append(str(error))
            continue
        if source in (OFFICIAL, DEBIAN):
            note.write_text(source + "\n", encoding="utf-8")
        return arrays, source
    raise MaskDMError(
        f"fashion_mnist: no source worked ({' | '.join(complaints)}); "
        f"place the four *-ubyte.gz files from {PAGE} in {home}, or set data.root to their folder"
    )


def _read_files(folder: Path) -> list[np.ndarray]:
    return [_read_idx(folder / name, checksum) for name, checksum in CHECKSUMS.items()]


def _read_idx(path: Path, checksum: str) -> np.ndarray:
    """Read and verify an IDX file of unsigned bytes: a magic number that ends in the rank, the sizes, the values."""
    try:
        with gzip.open(path) as file:
            content = file.read(MOST)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise MaskDMError(f"{path}: truncated, or not a gzip file ({error})") from None
    except OSError as error:
        raise MaskDMError(f"{path}: {error.strerror}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != checksum:
        raise MaskDMError(f"{path}: the unpacked content has SHA-256 {found}, expected {checksum}")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _is_intact(path: Path, checksum: str) -> bool:
    try:
        _read_idx(path, checksum)
    except MaskDMError:
        return False
    return True


def _download(home: Path) -> Path:
    """Fetch from the official address what `home` does not have yet."""
    home.mkdir(parents=True, exist_ok=True)
    for name, checksum in CHECKSUMS.items():
        if _is_intact(home / name, checksum):  # an earlier run, perhaps killed, has fetched it
            continue
        part = home / f"{name}.part"
        try:
            _fetch(OFFICIAL_URL + name, part)
            _read_idx(part, checksum)
            os.replace(part, home / name)
        finally:
            part.unlink(missing_ok=True)
    return home


def _fetch(url: str, target: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, target.open("wb") as file:
            size = int(answer.headers.get("Content-Length", 0)) or None
            with tqdm(total=size, desc=target.stem, unit="B", unit_scale=True) as bar:
                while block := answer.read(1 << 18):
                    file.write(block)
                    bar.update(len(block))
    except (OSError, http.client.HTTPException) as error:
        raise MaskDMError(f"{url}: {getattr(error, 'reason', error)}") from None


def _download_package(home: Path, scratch: Path) -> Path:
    """Fetch the Debian package with apt-get and unpack it, neither of which needs root."""
    if shutil.which("apt-get") is None:
        raise MaskDMError("apt-get: there is none on this machine")
    folder = scratch / PACKAGE
    shutil.rmtree(folder, ignore_errors=True)  # left by a kill
    (folder / "lists").mkdir(parents=True)
    (folder / "cache").mkdir()
    print(f"fashion_mnist: fetching the Debian package {PACKAGE} (31 MB)", file=sys.stderr)
    # Without the last option root's apt-get drops its rights, and can then not write here.
    options = ("Acquire::Retries=0", f"Acquire::http::Timeout={TIMEOUT}", "APT::Sandbox::User=root")
    apt = ["apt-get", "-qq", *(f"-o={option}" for option in options)]
    try:
        _run([*apt, "download", PACKAGE], folder)
    except MaskDMError as first:
        # A fresh machine has no package lists yet. Ours are private, so that filling them takes no root either.
        apt += [f"-o=Dir::State::lists={folder.resolve()}/lists", f"-o=Dir::Cache={folder.resolve()}/cache"]
        try:
            _run([*apt, "update"], folder)
            _run([*apt, "download", PACKAGE], folder)
        except MaskDMError as second:
            raise MaskDMError(f"{first}; after an update of the package lists: {second}") from None
    for package in folder.glob("*.deb"):
        _run(["dpkg-deb", "-x", package.name, "."], folder)
    unpacked = folder / PACKAGE_FOLDER.relative_to("/")
    _read_files(unpacked)
    home.mkdir(parents=True, exist_ok=True)
    for name in CHECKSUMS:
        part = home / f"{name}.part"
        shutil.copyfile(unpacked / name, part)
        os.replace(part, home / name)
    return home


def _run(command: list[str], folder: Path) -> None:
    """Run in `folder`; a failure becomes one line with the command's own last error."""
    program = command[0]
    try:
        subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=60 * TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise MaskDMError(f"{program}: no end after {60 * TIMEOUT} seconds") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.splitlines() or [f"exit code {error.returncode}"]
        raise MaskDMError(f"{program}: {said[-1].removeprefix('E: ')}") from None
