"""Hostile archives, folders and databases of images: they are prepared, or refused in one line.

Whatever they hold, nothing lies outside of the prepared folder afterwards, and what was refused leaves nothing.
"""

import gzip
import io
import json
import os
import stat
import tarfile
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from maskdm.config.params import Data
from maskdm.datasets.prepare import prepare
from maskdm.datasets.prepared import PreparedData
from maskdm.datasets.survey import survey
from tests.fuzz.harness import amounts, answer_of, changed_bytes, everything, fuzz, in_time, randoms, require_line
from tests.raw_data import image_bytes, settings

IMAGES = [image_bytes(20 * number, size=(8, 8)) for number in range(6)]
NAMES = st.one_of(
    st.sampled_from(
        [
            *(
                "a.png",
                "a/b.png",
                "../up.png",
                "../../project/own",
                "/absolute.png",
                "a/../../up.png",
                "./a.png",
                "a//b.png",
            ),
            *(
                "",
                ".",
                "..",
                "/",
                "a/",
                "a.png/b.png",
                ".hidden.png",
                "__MACOSX/a.png",
                "a\nb.png",
                "a\x1b[2J.png",
                "a\0b.png",
            ),
            *(
                "C:\\a.png",
                "\\\\host\\a.png",
                "..\\up.png",
                "é.png",
                "\udcff.png",
                "n" * 300 + ".png",
                "d/" * 300 + "a.png",
            ),
            *(
                "train/a.png",
                "test/a.png",
                "train/c/a.png",
                "list_eval_partition.txt",
                "con.png",
                " .png",
                "a.png ",
                "~/a.png",
            ),
        ]
    ),
    st.text(max_size=12).map(lambda text: f"{text}.png"),
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder of the raw files, beside the project and a file that nobody may touch."""
    (tmp_path / "private").write_text("untouched")
    for name in ("raw", "project"):
        (tmp_path / name).mkdir()
    return tmp_path / "raw"


def answer_to(data: Data, place: Path) -> str:
    """Prepare what is in a place, and look at what is left; `maskdm init` looks at images before that."""
    project, out = place.parent / "project", place.parent / "project" / "prepared"
    before = {name: content for name, content in everything(place.parent).items() if not name.startswith("project")}
    answer = answer_of(lambda: prepare(data, out, place))
    if data.name == "image_folder":
        looked = answer_of(lambda: survey(Path(data.root or place)))
        assert looked == "taken" or answer != "taken", "what can be prepared can be looked at"
    after = everything(place.parent)
    assert {name: content for name, content in after.items() if not name.startswith("project")} == before
    if answer == "taken":
        assert len(PreparedData.open(out).images)
        for name in json.loads((out / "dataset.json").read_bytes())["skipped"]:
            require_line(repr(name))
    else:
        assert everything(project) == {}, "what was refused leaves nothing"
    for path in sorted(project.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return answer


def of(name: str, root: Path, **changes: Any) -> Data:
    return settings(name, root=str(root), **{"image_size": 4, "holdout": 1} | changes)


# --- archives that were made by hand ----------------------------------------------------------------------------

Member = tuple[str, str, str, int]  # kind, name, target, size that the header states beyond that of the content
KINDS = ("file", "file", "file", "file", "folder", "symlink", "hard link", "device", "pipe", "sparse")
MEMBERS = st.lists(
    st.tuples(st.sampled_from(KINDS), NAMES, NAMES, st.sampled_from((0, 0, 0, 0, -1, 1, 1 << 20, 1 << 33))), max_size=6
)


def write_tar(path: Path, members: list[Member], random: Random) -> None:
    kinds = {
        "folder": tarfile.DIRTYPE,
        "symlink": tarfile.SYMTYPE,
        "hard link": tarfile.LNKTYPE,
        "device": tarfile.CHRTYPE,
        "pipe": tarfile.FIFOTYPE,
        "sparse": tarfile.GNUTYPE_SPARSE,
    }
    mode: Any = random.choice(("w", "w:gz", "w:xz", "w:bz2"))
    with tarfile.open(path, mode, format=random.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as archive:
        for number, (kind, name, target, more) in enumerate(members):
            member, content = tarfile.TarInfo(name), IMAGES[number] if kind == "file" else b""
            member.type, member.linkname = kinds.get(kind, tarfile.REGTYPE), target
            member.devmajor, member.devminor = 1, 5  # /dev/zero
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
            if more and kind == "file" and mode == "w":  # a lie
                member.size = max(0, member.size + more)
                archive.fileobj.seek(member.offset)  # type: ignore[union-attr]
                archive.fileobj.write(member.tobuf(tarfile.GNU_FORMAT)[:512])  # type: ignore[union-attr]
                archive.fileobj.seek(archive.offset)  # type: ignore[union-attr]


def write_zip(path: Path, members: list[Member], random: Random) -> None:
    method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
        warnings.simplefilter("ignore")  # a name that is there twice
        for number, (kind, name, target, more) in enumerate(members):
            info, content = zipfile.ZipInfo(name.replace("\0", "0") or "x"), IMAGES[number]
            info.compress_type = method
            if kind in ("symlink", "hard link"):
                info.external_attr, content = (stat.S_IFLNK | 0o777) << 16, os.fsencode(target)
            archive.writestr(info, content)
            info.file_size = max(0, info.file_size + more)  # a lie, in the directory at the end


@pytest.mark.parametrize(("suffix", "write"), [("tar", write_tar), ("zip", write_zip)])
@amounts(400)
def test_members(suffix: str, write: Callable[[Path, list[Member], Random], None], examples: int, place: Path) -> None:
    path = place / f"archive.{suffix}"

    def check(given: tuple[list[Member], Random]) -> str:
        try:
            write(path, *given)
        except (ValueError, OSError, UnicodeError, zipfile.LargeZipFile):  # it cannot be written
            return "not written"
        return answer_to(of("image_folder", path), place)

    fuzz(examples, f"members of a {suffix}", st.tuples(MEMBERS, randoms()), check)


# --- files that were damaged ------------------------------------------------------------------------------------


@cache
def whole(kind: str) -> bytes:
    """A data set in one file."""
    members = [("file", f"{folder}/{n}.png", "", 0) for n, folder in enumerate(("train", "train", "train", "test"))]
    path = Path(os.environ["PYTEST_TMP"]) / kind
    if kind.startswith("tar"):
        mode: Any = f"w:{kind[4:]}"
        with tarfile.open(path, mode) as archive:
            for (_, name, _, _), content in zip(members, IMAGES, strict=False):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    elif kind == "zip":
        write_zip(path, members, Random(0))
    elif kind == "parquet":
        rows = pa.table({"image": [{"bytes": image, "path": "x"} for image in IMAGES], "label": [0, 1, 0, 1, 0, 1]})
        pq.write_table(rows, path, row_group_size=2)
    else:
        with lmdb.open(str(path), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
            for number, image in enumerate(IMAGES):
                transaction.put(b"%d" % number, image)
            transaction.put(b"long", IMAGES[0] + bytes(5000))
        path /= "data.mdb"
    return path.read_bytes()


FILES = {
    "tar": ("image_folder", "a.tar"),
    "tar.gz": ("image_folder", "a.tar.gz"),
    "zip": ("image_folder", "a.zip"),
    "tar.": ("webdataset", "a.tar"),
    "parquet": ("parquet", "a.parquet"),
    "lmdb": ("lmdb", "data.mdb"),
}


@pytest.mark.parametrize("kind", FILES)
@amounts(250, few=4)
def test_damaged_files(kind: str, examples: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_TMP", str(place.parent / "project"))
    usual = whole(kind)
    for path in sorted((place.parent / "project").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    name, file = FILES[kind]
    labels = {"parquet": "label"}.get(kind)

    def check(random: Random) -> str:
        (place / file).write_bytes(changed_bytes(usual, random))
        split = random.choice((None, 1))
        return answer_to(of(name, place, holdout=split, labels=random.choice((None, labels))), place)

    fuzz(examples, f"damaged {file}, {name}", randoms(), check)


# --- folders ----------------------------------------------------------------------------------------------------


@amounts(150)
def test_folders(examples: int, place: Path) -> None:
    """Links in circles, to devices, to nothing and out of the folder; pipes; names that are no text."""
    entries = st.lists(
        st.tuples(
            st.sampled_from(("file", "file", "file", "symlink", "pipe", "folder")),
            NAMES,
            st.sampled_from(
                ["", ".", "..", "/dev/zero", "/dev/stdin", "/proc/self", "../private", "none", "a", "a.png"]
            ),
        ),
        max_size=8,
    )

    def check(given: list[tuple[str, str, str]]) -> str:
        root = place / "images"
        root.mkdir()
        for number, (kind, name, target) in enumerate(given):
            path = root / name.lstrip("/")
            if ".." in path.parts or path == root or os.path.lexists(path):
                continue
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if kind == "file":
                    path.write_bytes(IMAGES[number % len(IMAGES)])
                elif kind == "symlink":
                    path.symlink_to(target or path.name)
                elif kind == "pipe":
                    os.mkfifo(path)
                else:
                    path.mkdir()
            except (OSError, ValueError):  # the system has no such name, or it is there
                continue
        try:
            return answer_to(of("image_folder", root), place)
        finally:
            for path in sorted(root.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
            root.rmdir()

    fuzz(examples, "folders", entries, check)


# --- what one would not meet by chance --------------------------------------------------------------------------

BOMB, MOST = 1 << 28, 1 << 27  # bytes that are packed, and that reading may take


def peak_of(call: Callable[[], str]) -> tuple[str, int]:
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def with_images(archive: zipfile.ZipFile) -> None:
    for number, content in enumerate(IMAGES):
        archive.writestr(f"{number}.png", content)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, pytest.param(zipfile.ZIP_LZMA, marks=pytest.mark.slow)])
def test_a_member_that_states_few_bytes_is_not_unpacked_to_many(method: int, place: Path) -> None:
    path = place / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        with_images(archive)
        archive.writestr("bomb.png", bytes(BOMB))
        archive.getinfo("bomb.png").file_size = 100  # in the directory at the end, which is read
    answer, peak = peak_of(lambda: answer_to(of("image_folder", path), place))
    assert (answer, peak < MOST) == ("taken", True), (answer, peak)


def test_a_name_of_very_many_bytes_is_not_read(place: Path) -> None:
    path, member = place / "a.tar.gz", tarfile.TarInfo("name")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, BOMB
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        for _ in range(BOMB >> 20):
            file.write(bytes(1 << 20))
    answer, peak = peak_of(lambda: answer_to(of("image_folder", path), place))
    assert (answer, peak < MOST) == ("refused", True), (answer, peak)


@pytest.mark.parametrize("name", ["image_folder", "webdataset"])
def test_a_header_that_leads_back_ends(name: str, place: Path) -> None:
    """Python read on for ever (CVE-2025-8194)."""
    path, members = place / "a.tar", [tarfile.TarInfo("0.png"), tarfile.TarInfo("1.png")]
    members[1].size = -512  # back to itself
    path.write_bytes(b"".join(member.tobuf(tarfile.GNU_FORMAT) for member in members) + bytes(1024))
    with in_time():
        assert answer_to(of(name, path), place) == "refused"


def test_an_archive_that_unpacks_to_very_much_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskdm.datasets.trees.UNPACKED", 1 << 20)
    path = place / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for number in range(20):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = 1 << 20
            archive.addfile(member, io.BytesIO(bytes(1 << 20)))
    assert answer_to(of("image_folder", path), place) == "refused"
