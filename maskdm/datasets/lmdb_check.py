"""Reads all of an LMDB, as a program of its own: `lmdbs` runs it, since a damaged one may kill the process.

It imports nothing of the suite, which would take longer than most databases do.
"""

import sys

import lmdb


def main(path: str) -> str | None:
    """Read every key and value; returns what is wrong."""
    try:
        with lmdb.open(path, readonly=True, lock=False, create=False) as environment:
            count, pages = environment.stat()["entries"], environment.info()["last_pgno"] + 1
            with environment.begin(buffers=True) as transaction, transaction.cursor() as cursor:
                for number, (key, value) in enumerate(cursor, start=1):
                    bytes(key), bytes(value)
                    if number > min(count, pages * environment.stat()["psize"]):  # its pages lead in a circle
                        return "more entries than it states"
    except (lmdb.Error, MemoryError, OverflowError) as error:
        return str(error) or type(error).__name__
    return None


if __name__ == "__main__":
    if wrong := main(sys.argv[1]):
        print(wrong)
        sys.exit(1)
