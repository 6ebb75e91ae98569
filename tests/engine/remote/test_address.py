"""Addresses and keys of servers: what is accepted, and that secrets are not shown."""

from __future__ import annotations

import pytest

from engine.remote.address import Address, check_key, read_key
from engine.runtime.errors import BareloopError, UsageError


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost:8000/v1/", "http://localhost:8000"),
        ("https://api.openai.com/v1", "https://api.openai.com"),
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api"),
        ("http://host/v1/chat/completions", "http://host"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
    ],
)
def test_addresses_are_read_with_and_without_scheme_and_v1(url, root):
    assert Address.parse(url).root == root


def test_only_addresses_of_this_machine_are_local():
    urls = {
        "http://localhost": True,
        "http://127.0.0.2:1": True,
        "[::1]:80": True,
        "http://10.0.0.1": False,
        "a.b": False,
    }
    assert {url: Address.parse(url).is_local for url in urls} == urls


def test_a_password_is_used_and_not_shown():
    address = Address.parse("http://me:hunter2@host:1/v1")
    assert (address.root, address.shown) == ("http://me:hunter2@host:1", "http://host:1")
    with pytest.raises(UsageError) as caught:
        Address.parse("http://me:hunter2@host:notaport")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UsageError) as caught:
        Address.parse("http://host/v1?api_key=hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "http://host:99999", "a b", "http://[::1", "/v1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(UsageError, match="not the address of a server"):
        Address.parse(url)


def test_a_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("BARELOOP_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert read_key() is None
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert read_key() == "theirs"
    monkeypatch.setenv("BARELOOP_API_KEY", "ours")
    assert read_key() == "ours"
    file = tmp_path / "key"
    file.write_text(" of a file\n")
    assert read_key(str(file)) == "of a file"
    for content, line in ((b"\n", "is empty"), (b"\xff\xfe", "it is not text")):
        file.write_bytes(content)
        with pytest.raises(BareloopError, match=line):
            read_key(str(file))
    with pytest.raises(BareloopError, match="No such file"):
        read_key(str(tmp_path / "none"))


@pytest.mark.parametrize("key", ["two words", "schlüssel", "a\nb"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(key):
    with pytest.raises(UsageError) as caught:
        check_key(key)
    assert key not in str(caught.value)
