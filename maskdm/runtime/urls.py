"""URLs of servers and databases: as they may be shown, and without a detour."""

import os
import re

# From `://` to the last `@`; not of a file's path, which may hold one: `sqlite:////home/me@work/mlflow.db`.
_LOGIN = re.compile(r"(?<=://)[^\s/'\"][^\s'\"]*@|(?<=://)@")
_SECRET = re.compile(r"(?i)(\w*(?:password|passwd|token|secret)\w*=)[^&\s'\"]*")

_THIS_MACHINE = "localhost,127.0.0.1,::1"


def without_passwords(text: str) -> str:
    """A URL, or a message that quotes some, without users and passwords."""
    return _SECRET.sub(r"\1***", _LOGIN.sub("", text))


def bypass_proxies_on_this_machine() -> None:
    """Ask servers of this machine directly, also in processes that are started: a proxy does not reach them."""
    for name in ("no_proxy", "NO_PROXY"):  # the first goes before the second where both are set
        given = os.environ.get(name)
        if given is not None and _THIS_MACHINE not in given:
            os.environ[name] = f"{given},{_THIS_MACHINE}"
    os.environ.setdefault("no_proxy", os.environ.get("NO_PROXY", _THIS_MACHINE))
