"""Decoding in parallel, going on after a kill, and in bounded memory."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskdm.datasets import decoded, encoded, folders, trees
from maskdm.datasets.decoded import DecodedImages
from maskdm.datasets.prepare import prepare
from maskdm.datasets.raw import RawImages
from maskdm.runtime.errors import MaskDMError
from tests.imports import PROJECT
from tests.memory import bounded
from tests.raw_data import database, grey_levels, image_bytes, levels, place, prepared, settings, tar_of, zip_of


def noise(count: int) -> dict[str, bytes]:
    random, files = np.random.default_rng(0), {}
    for index in range(count):
        file = io.BytesIO()
        Image.fromarray(random.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(file, "JPEG")
        files[f"{index:03d}.jpg"] = file.getvalue()
    return files


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def die() -> np.ndarray:
    os.kill(os.getpid(), signal.SIGKILL)
    return np.empty(0)


def test_processes_give_the_bytes_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = noise(80) | {"031.jpg": b"x", "cut.jpg": noise(1)["000.jpg"][:-50], "copy.jpg": noise(80)["007.jpg"]}
    place(tmp_path / "raw" / "image_folder", files)
    data = settings("image_folder", holdout=20)
    prepared(data, tmp_path)
    alone = state(tmp_path / "prepared")
    monkeypatch.setattr(decoded, "FEW", 10)
    monkeypatch.setattr(decoded, "CHUNK", 5)
    monkeypatch.setattr(decoded, "count_cores", lambda: 2)
    prepared(data, tmp_path)
    assert state(tmp_path / "prepared") == alone
    assert json.loads(alone["dataset.json"])["skipped"] == ["031.jpg", "cut.jpg"]


def test_a_process_that_is_killed_is_one_line_and_what_was_decoded_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = RawImages("drawn", {}, 4, lambda index: np.zeros((1, 1, 1), np.uint8), call=lambda index: die)
    (tmp_path / "decoded").mkdir()
    images = DecodedImages(raw, tmp_path / "decoded", [1, 1, 1], 0, workers=2)
    with pytest.raises(BrokenProcessPool):
        images.decode(range(4))

    def broken(*_: Any) -> None:
        raise BrokenProcessPool

    place(tmp_path / "raw" / "image_folder", grey_levels(4))
    monkeypatch.setattr(DecodedImages, "collect", broken)
    with pytest.raises(MaskDMError, match=r"a process that decodes images was killed .* goes on from here"):
        prepared(settings("image_folder", holdout=1), tmp_path)
    assert (tmp_path / ".prepared.partial" / "decoded" / "images.npy").stat().st_size > 4 * 16 * 16 * 3


def test_too_little_memory_is_no_damaged_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> bytes:
        raise MemoryError

    place(tmp_path / "raw" / "image_folder", grey_levels(4))
    monkeypatch.setattr(trees, "_read_file", full)
    with pytest.raises(MaskDMError, match=r"\.prepared\.partial: out of memory; the same command goes on from here"):
        prepared(settings("image_folder", holdout=1), tmp_path)


# --- going on -------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that were decoded, in that order."""
    names: list[str] = []
    decode = encoded.decode

    def counted(read: Any, name: str, *shape: int) -> np.ndarray:
        names.append(name)
        return decode(read, name, *shape)

    monkeypatch.setattr(encoded, "decode", counted)
    monkeypatch.setattr(decoded, "CHUNK", 1)
    return names


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch, data: Any, tmp_path: Path) -> None:
    original, calls = decoded._decode, iter(range(count))

    def stop(*arguments: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(decoded, "_decode", stop)
        with pytest.raises(KeyboardInterrupt):
            prepared(data, tmp_path)


def test_an_interrupted_prepare_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    place(tmp_path / "raw" / "image_folder", grey_levels(20) | {"bad.png": b"x", "copy.png": image_bytes(70)})
    data = settings("image_folder", holdout=5)
    prepared(data, tmp_path)
    whole, first = state(tmp_path / "prepared"), sorted(reads)
    assert first == sorted([*grey_levels(20), "bad.png", "copy.png"])
    reads.clear()
    interrupt_after(9, monkeypatch, data, tmp_path)
    assert state(tmp_path / "prepared") == whole  # the old one, until the new one is complete
    interrupt_after(15, monkeypatch, data, tmp_path)
    prepared(data, tmp_path)
    assert sorted(reads) == first
    assert state(tmp_path / "prepared") == whole
    assert [path.name for path in tmp_path.iterdir() if path.name != "raw"] == ["prepared"]


def test_what_does_not_fit_its_digest_is_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    place(tmp_path / "raw" / "image_folder", grey_levels(12))
    data = settings("image_folder", holdout=3)
    prepared(data, tmp_path)
    whole = state(tmp_path / "prepared")
    interrupt_after(8, monkeypatch, data, tmp_path)
    torn = tmp_path / ".prepared.partial" / "decoded" / "images.npy"
    content = np.memmap(torn, np.uint8, "r+")
    content[:] = 1
    content.flush()
    reads.clear()
    prepared(data, tmp_path)
    assert len(reads) == 12
    assert state(tmp_path / "prepared") == whole


@pytest.mark.parametrize("change", ["settings", "file"])
def test_other_settings_and_changed_files_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str], change: str
) -> None:
    raw = place(tmp_path / "raw" / "image_folder", grey_levels(12) | {"003.png": image_bytes(30, kind="BMP")})
    interrupt_after(11, monkeypatch, settings("image_folder", holdout=3), tmp_path)
    reads.clear()
    if change == "file":
        size = (raw / "003.png").stat().st_size
        place(raw, {"003.png": image_bytes(200, kind="BMP")})
        assert (raw / "003.png").stat().st_size == size
    data = prepared(settings("image_folder", holdout=3 if change == "file" else 4), tmp_path)
    assert len(reads) == 12
    assert sorted(levels(data.images)) == sorted([*range(3), *range(4, 12), 20 if change == "file" else 3])


@pytest.mark.usefixtures("reads")
def test_a_tar_is_not_unpacked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path / "images", grey_levels(8))
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(tmp_path / "images", arcname=".")
        pipe = tarfile.TarInfo("pipe.png")
        pipe.type = tarfile.FIFOTYPE
        archive.addfile(pipe)
    data = settings("image_folder", root=str(tmp_path / "images.tar"), holdout=2)
    info = prepared(data, tmp_path).info
    interrupt_after(3, monkeypatch, data, tmp_path)
    monkeypatch.setattr(tarfile, "open", lambda *_: pytest.fail("unpacked again"))
    assert prepared(data, tmp_path).info == info
    assert info["left_out"] == {"unreadable": {"count": 1, "first": ["pipe.png"]}}


def test_two_at_a_time_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path / "raw" / "image_folder", grey_levels(4))
    data = settings("image_folder", holdout=1)

    def again(*_: Any) -> Any:
        prepare(data, tmp_path / "prepared", tmp_path / "raw")

    monkeypatch.setattr(folders, "list_images", again)
    with pytest.raises(MaskDMError, match=r"\.prepared\.partial: another process is at this stage"):
        prepared(data, tmp_path)


KILLED = """
import sys
from pathlib import Path
from maskdm.datasets import decoded
from maskdm.datasets.prepare import prepare
from tests.raw_data import settings
if __name__ == "__main__":
    decoded.FEW, decoded.count_cores = 10, lambda: 2
    prepare(settings("image_folder", holdout=100, image_size=256), Path("prepared"), Path("raw"))
"""


@pytest.mark.slow
def test_a_kill_leaves_no_process_and_the_next_run_goes_on(tmp_path: Path) -> None:
    place(tmp_path / "raw" / "image_folder", noise(600))
    expected = prepared(settings("image_folder", holdout=100, image_size=256), tmp_path).info
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "raw").symlink_to(tmp_path / "raw")
    command = [sys.executable, str(tmp_path / "killed.py")]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, cwd=tmp_path / "again", env=environment, stderr=subprocess.PIPE) as process:
        digests = tmp_path / "again" / ".prepared.partial" / "decoded" / "digests"
        while not (digests.exists() and np.fromfile(digests, np.uint8).any()):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.communicate()  # its children have the pipe, too: it ends when all of them have
    subprocess.run(command, cwd=tmp_path / "again", env=environment, check=True, capture_output=True)
    assert json.loads((tmp_path / "again/prepared/dataset.json").read_text())["sha256"] == expected["sha256"]


# --- larger than memory ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_set_of_several_times_the_memory_is_prepared(tmp_path: Path) -> None:
    place(tmp_path / "raw" / "image_folder", noise(90))  # 90 x 3 MB
    bounded(
        "limit(); prepare(settings('image_folder', holdout=3, image_size=1024), Path('prepared'), Path('raw'))",
        tmp_path, 64,
    )  # fmt: skip
    assert (tmp_path / "prepared" / "images.npy").stat().st_size > 4 * (64 << 20)


@pytest.mark.slow
def test_all_cores_together_stay_within_as_little_memory_each(tmp_path: Path) -> None:
    place(tmp_path / "raw" / "image_folder", noise(2100))  # small files: 413 MB when they are prepared
    bounded(
        "limit(); prepare(settings('image_folder', holdout=100, image_size=256), Path('prepared'), Path('raw'))",
        tmp_path, 64,
    )  # fmt: skip
    assert json.loads((tmp_path / "prepared" / "dataset.json").read_text())["files_found"] == 2100 > decoded.FEW
    assert (tmp_path / "prepared" / "images.npy").stat().st_size > 4 * (64 << 20)


LARGE = 190  # images of 2 MB each, as they are stored


def large_images() -> dict[str, bytes]:
    return {f"{index:03d}.bmp": image_bytes(index, (1000, 700), "BMP") for index in range(LARGE)}


def put_into_tar(root: Path) -> str:
    tar_of(root / "a.tar", large_images(), "w")
    return "image_folder"


def put_into_packed_tar(root: Path) -> str:
    tar_of(root / "a.tar.gz", large_images())
    return "image_folder"


def put_into_zip(root: Path) -> str:
    zip_of(root / "a.zip", large_images())
    return "image_folder"


def put_into_webdataset(root: Path) -> str:
    put_into_tar(root)
    return "webdataset"


def put_into_lmdb(root: Path) -> str:
    database(root, large_images())
    return "lmdb"


@pytest.mark.slow
@pytest.mark.parametrize("put", [put_into_tar, put_into_packed_tar, put_into_zip, put_into_webdataset, put_into_lmdb])
def test_an_archive_of_several_times_the_memory_is_read(put: Callable[[Path], str], tmp_path: Path) -> None:
    root = tmp_path / "raw" / "image_folder"
    root.mkdir(parents=True)
    name = put(root)
    data = f"settings('{name}', root='raw/image_folder', holdout=3)"
    bounded(
        f"import lmdb; from maskdm.datasets import webdataset, trees; limit(); "
        f"prepare({data}, Path('prepared'), Path('raw'))",
        tmp_path, 64,
    )  # fmt: skip
    assert json.loads((tmp_path / "prepared" / "dataset.json").read_text())["files_found"] == LARGE
    assert len(image_bytes(0, (1000, 700), "BMP")) * LARGE > 4 * (64 << 20)


@pytest.mark.slow
def test_a_group_of_rows_of_several_times_the_memory_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = list(large_images().values())
    (tmp_path / "raw").mkdir()
    file = tmp_path / "raw" / "a.parquet"
    pages: dict[str, Any] = {"use_dictionary": False, "write_batch_size": 1}  # of one image each
    pq.write_table(pa.table({"image": images}), file, compression="none", **pages)
    assert pq.ParquetFile(file).metadata.num_row_groups == 1
    bounded(
        "from maskdm.datasets import parquet; limit(); "
        "prepare(settings('parquet', root='raw', holdout=3), Path('prepared'), Path('raw'))",
        tmp_path, 90,
    )  # fmt: skip
    assert file.stat().st_size > 4 * (90 << 20)
