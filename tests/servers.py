"""Real servers for tests, without Docker: PostgreSQL as Debian installs it, MLflow as `compose.yaml` starts it."""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ruamel.yaml import YAML

from tests.imports import PROJECT

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # where Debian keeps PostgreSQL
USER = "maskdm"
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<text>[^}]*))?\}")
STARTS_WITHIN = 300  # seconds, on a machine that is busy


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Postgres:
    """A server with an empty database `postgres`, on a socket in its folder and, with a password, on loopback."""

    def __init__(self, folder: Path, password: str | None = None) -> None:
        self.folder, self.password, self.port = folder, password, free_port()
        self._as_root = os.geteuid() == 0  # which PostgreSQL refuses to run as
        if self._as_root:
            shutil.chown(folder, "postgres")
        auth = ["--auth=trust"]
        if password:
            (folder / "password").write_text(password)
            auth = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
        self.run("initdb", f"--username={USER}", "--no-sync", *auth)

    def run(self, program: str, *arguments: str) -> None:
        """A program of PostgreSQL's, on this server's files."""
        user = ["runuser", "-u", "postgres", "--"] if self._as_root else []
        command = [*user, str(PROGRAMS[-1] / program), "-D", str(self.folder / "data"), *arguments]
        subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        listen = "127.0.0.1" if self.password else ""
        options = f"-p {self.port} -c listen_addresses={listen} -c unix_socket_directories={self.folder} -c fsync=off"
        self.run("pg_ctl", "start", "-w", "-t", str(STARTS_WITHIN), "-l", str(self.folder / "log"), "-o", options)

    def kill(self) -> None:
        """At once, without a word to those who are connected: what was not written is recovered at the next start."""
        self.run("pg_ctl", "stop", "-m", "immediate")

    def execute(self, statement: str) -> None:
        """One SQL statement."""
        with psycopg.connect(
            host=str(self.folder), port=self.port, user=USER, password=self.password, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(statement.encode())

    @property
    def url(self) -> str:
        """Of the database, over the socket."""
        return f"postgresql+psycopg://{USER}@/postgres?host={self.folder}&port={self.port}"


@contextmanager
def postgres(password: str | None = None) -> Iterator[Postgres]:
    """A server that is started and, in the end, killed. Without PostgreSQL the test is skipped."""
    if not PROGRAMS:
        pytest.skip("no PostgreSQL server: /usr/lib/postgresql/*/bin is missing (Debian: postgresql)")
    if os.geteuid() == 0 and not any(user.pw_name == "postgres" for user in pwd.getpwall()):
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    folder = Path(tempfile.mkdtemp(prefix="maskdm-postgres-"))  # a path short enough for a socket
    try:
        server = Postgres(folder, password)
        server.start()
        try:
            yield server
        finally:
            if (folder / "data" / "postmaster.pid").is_file():
                server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compose(environment: Mapping[str, str]) -> dict[str, Any]:
    """`compose.yaml` with its variables replaced, as Docker does.

    Raises:
        KeyError: one that it demands is not set.
    """

    def value(found: re.Match[str]) -> str:
        if found["kind"] == "-":
            return environment.get(found["name"], found["text"])
        return environment[found["name"]]

    content: dict[str, Any] = YAML(typ="safe").load(VARIABLE.sub(value, (PROJECT / "compose.yaml").read_text()))
    return content


class MLflow:
    """The service `mlflow` of `compose.yaml`, with the places of its containers replaced by those of this machine."""

    def __init__(self, folder: Path, database: Postgres) -> None:
        self.folder, self.port = folder, free_port()
        service = compose({"POSTGRES_PASSWORD": database.password or ""})["services"]["mlflow"]
        here = {
            "postgresql+psycopg://db/": f"postgresql+psycopg://127.0.0.1:{database.port}/",
            "=/artifacts": f"={folder / 'artifacts'}",
            "--host=0.0.0.0": "--host=127.0.0.1",
            "--port=5000": f"--port={self.port}",
            "--workers=2": "--workers=1",
        }
        self.command = [_replaced(part, here) for part in service["command"]]
        self.healthcheck = [_replaced(part, {":5000/": f":{self.port}/"}) for part in service["healthcheck"]["test"]]
        self._environment = {**os.environ, **service["environment"], "PYTHONPATH": str(PROJECT)}
        for name in ("MLFLOW_TRACKING_URI", "DVC_STAGE"):
            self._environment.pop(name, None)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "mlflow.log"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        assert self.command[0] == "mlflow"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self.command],
                cwd=self.folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + STARTS_WITHIN
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(self.log.read_text(errors="replace")[-2000:])
            time.sleep(0.5)

    def kill(self) -> None:
        """SIGKILL to the server and all that it has started."""
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=10):
                return True
        except OSError:
            return False


@contextmanager
def mlflow_server(folder: Path, database: Postgres) -> Iterator[MLflow]:
    """The server, started; in the end it is killed."""
    server = MLflow(folder, database)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _replaced(text: str, others: Mapping[str, str]) -> str:
    for old, new in others.items():
        text = text.replace(old, new)
    return text
