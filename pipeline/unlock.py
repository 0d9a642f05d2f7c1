"""Removes a lock file of DVC's that a kill or a full disk has torn: DVC stops at half of one.

python pipeline/unlock.py FILE ...

The file says what has run. Without it the stages run again, and find what is trained.
"""

import sys
from pathlib import Path


def is_whole(path: Path) -> bool:
    """Whether DVC would take the file. Without DVC nothing is said against it."""
    try:
        from dvc.schema import COMPILED_LOCKFILE_SCHEMA
        from ruamel.yaml import YAML
    except ImportError:
        return True
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(path.read_text(encoding="utf-8")))
    except OSError:
        raise
    except Exception:  # the parser's and the schema's, of many kinds
        return False
    return True


def main() -> None:
    """Look at every file that is there."""
    for path in map(Path, sys.argv[1:]):
        if path.is_file() and not is_whole(path):
            path.unlink()
            print(f"{path} was torn and is removed: stages run again, and find what is trained", file=sys.stderr)


if __name__ == "__main__":
    main()
