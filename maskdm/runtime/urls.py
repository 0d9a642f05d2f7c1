"""URLs of servers and databases as they may be shown."""

import re

# From `://` to the last `@`; not of a file's path, which may hold one: `sqlite:////home/me@work/mlflow.db`.
_LOGIN = re.compile(r"(?<=://)[^\s/'\"][^\s'\"]*@|(?<=://)@")
_SECRET = re.compile(r"(?i)(\w*(?:password|passwd|token|secret)\w*=)[^&\s'\"]*")


def without_passwords(text: str) -> str:
    """A URL, or a message that quotes some, without users and passwords."""
    return _SECRET.sub(r"\1***", _LOGIN.sub("", text))
