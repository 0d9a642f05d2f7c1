import pytest

from maskdm.runtime.urls import without_passwords


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:secret@example.org:5000/x", "http://example.org:5000/x"),
        ("postgresql+psycopg://me:se/c@ret@host/db", "postgresql+psycopg://host/db"),
        ("postgresql://me@/db?host=/run&password=secret&port=1", "postgresql:///db?host=/run&password=***&port=1"),
        ("cannot reach 'http://me:secret@host' or http://:secret@other", "cannot reach 'http://host' or http://other"),
        ("sqlite+pysqlite:////home/me@work/mlflow.db", "sqlite+pysqlite:////home/me@work/mlflow.db"),
        ("mail me@example.org", "mail me@example.org"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_passwords(url) == shown
    assert "secret" not in shown
