"""Raw data sets made of small images, for tests of what is prepared of them."""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Literal

import lmdb
import numpy as np
from PIL import Image

from maskdm.config.params import Data
from maskdm.datasets.prepare import prepare
from maskdm.datasets.prepared import PreparedData


def settings(name: str, **changes: Any) -> Data:
    return Data.model_validate(
        {"name": name, "root": None, "image_size": 16, "channels": 3, "holdout": None, "train_images": None} | changes
    )


def prepared(data: Data, tmp_path: Path) -> PreparedData:
    prepare(data, tmp_path / "prepared", tmp_path / "raw")
    return PreparedData.open(tmp_path / "prepared")


def image_bytes(level: int, size: tuple[int, int] = (24, 20), kind: str = "PNG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (level,) * 3).convert(mode).save(file, kind)
    return file.getvalue()


def place(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tar_of(path: Path, files: dict[str, bytes], mode: Literal["w", "w:gz"] = "w:gz") -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def zip_of(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def database(path: Path, values: dict[str, bytes]) -> Path:
    """An LMDB, a folder, with values of up to 1 GB in all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), map_size=1 << 30) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    return path


def grey_levels(count: int, folder: str = "") -> dict[str, bytes]:
    """Images that their grey level tells apart."""
    return {f"{folder}{index:03d}.png": image_bytes(10 * index) for index in range(count)}


def levels(images: np.ndarray) -> list[int]:
    return [int(image.flat[0]) // 10 for image in images]
