"""`compose.yaml`: its very commands run here without Docker, with Debian's PostgreSQL, and are tracked into."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.imports import PROJECT
from tests.load import differences, sync
from tests.servers import USER, MLflow, compose, free_port, mlflow_server, postgres

PASSWORD = "p@ss/w:rd-of-the-team"


def services(**environment: str) -> dict[str, Any]:
    content: dict[str, Any] = compose({"POSTGRES_PASSWORD": PASSWORD} | environment)["services"]
    return content


def test_without_a_password_nothing_starts() -> None:
    with pytest.raises(KeyError):
        compose({})


def test_ports_are_open_to_this_machine_alone_unless_told_otherwise() -> None:
    ports = [port for service in services().values() for port in service["ports"]]
    assert ports == ["127.0.0.1:5432:5432", "127.0.0.1:5000:5000"]
    for service in services(BIND="0.0.0.0").values():
        assert all(port.startswith("0.0.0.0:") for port in service["ports"])
    assert "--allowed-hosts=mlflow.example.org:5000" in services(HOSTS="mlflow.example.org:5000")["mlflow"]["command"]


def test_the_password_is_on_no_command_line() -> None:
    for service in services().values():
        assert PASSWORD not in " ".join([*service.get("command", ()), *service["healthcheck"]["test"]])


def test_the_image_has_the_versions_of_this_project() -> None:
    dockerfile = services()["mlflow"]["build"]["dockerfile_inline"]
    assert "-c constraints.txt" in dockerfile
    pins = {line.partition("==")[0].lower() for line in (PROJECT / "constraints.txt").read_text().splitlines()}
    assert {"mlflow", "psycopg", "psycopg-binary"} <= pins
    assert "psycopg[binary]" in dockerfile
    assert re.search(r"FROM python:3\.1\d", dockerfile)


@pytest.mark.slow
def test_the_services_run_and_are_tracked_into_and_no_password_is_left_anywhere(tmp_path: Path) -> None:
    declared = compose({"POSTGRES_PASSWORD": PASSWORD})
    db = declared["services"]["db"]
    assert (db["environment"]["POSTGRES_USER"], db["environment"]["PGUSER"]) == (USER, USER)
    with postgres(PASSWORD) as database:
        database.execute(f"CREATE DATABASE {db['environment']['POSTGRES_DB']}")  # what its image does
        database.execute(declared["configs"]["search"]["content"])
        login = {**os.environ, "PGHOST": "127.0.0.1", "PGPORT": str(database.port), **db["environment"]}
        assert db["healthcheck"]["test"][0] == "CMD"
        subprocess.run(db["healthcheck"]["test"][1:], env=login, check=True, stdout=subprocess.DEVNULL)

        with mlflow_server(tmp_path, database) as server:
            check_health(server)
            assert sync(tmp_path / "project", server.url, writers=2, rows=3) == 2
            assert not differences(tmp_path / "project", server.url, writers=2, rows=3)
        search_in(database.port, tmp_path)
        left = [path for path in [*tmp_path.rglob("*"), database.folder / "log"] if path.is_file()]
        assert server.log in left
        for path in left:
            assert PASSWORD.encode() not in path.read_bytes(), path


def check_health(server: MLflow) -> None:
    """Its own check says so while it runs, and only then."""
    kind, program, *arguments = server.healthcheck
    assert (kind, program) == ("CMD", "python")
    subprocess.run([sys.executable, *arguments], check=True)
    elsewhere = [argument.replace(str(server.port), str(free_port())) for argument in arguments]
    assert subprocess.run([sys.executable, *elsewhere], stderr=subprocess.DEVNULL).returncode != 0


def search_in(port: int, folder: Path) -> None:
    """A study in the database that the search is given, as the how-to names it."""
    code = (
        "import sys; from pathlib import Path; from maskdm.search import open_storage, open_study\n"
        "print(len(open_study(open_storage(sys.argv[1], Path()), 'toy', 3).get_trials()))"
    )
    environment = {**os.environ, "PGUSER": USER, "PGPASSWORD": PASSWORD, "PYTHONPATH": str(PROJECT)}
    url = f"postgresql+psycopg://127.0.0.1:{port}/search"
    done = subprocess.run(
        [sys.executable, "-c", code, url], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "3"
