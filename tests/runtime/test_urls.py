import pytest
from requests.utils import should_bypass_proxies

from maskdm.runtime.urls import bypass_proxies_on_this_machine, without_passwords


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


@pytest.mark.parametrize("given", [{}, {"NO_PROXY": "example.org"}, {"no_proxy": "example.org"}, {"no_proxy": ""}])
def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:8080")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        bypass_proxies_on_this_machine()
    assert all(should_bypass_proxies(f"http://{host}:5000", None) for host in ("127.0.0.1", "localhost"))
    assert should_bypass_proxies("http://example.org", None) == ("example.org" in given.values())
    assert not should_bypass_proxies("http://example.com", None)
