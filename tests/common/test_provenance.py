"""Revisions, versions and hashes; hashes are a promise to every run of the past."""

import subprocess

import pytest

from negclip_jax.common import provenance
from negclip_jax.common.errors import InputError


def test_git_revision_of_this_checkout():
    git = ["git", "-C", provenance.__file__.rsplit("/", 1)[0], "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True)
    if head.returncode:
        assert provenance.git_revision() is None
    else:
        assert provenance.git_revision().removesuffix("+changes") == head.stdout.strip()


def test_no_git_is_no_error(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert provenance.git_revision() is None


def test_versions_of_packages():
    found = provenance.package_versions(["numpy", "no-such-package"])
    assert found["numpy"].count(".") >= 1 and found["no-such-package"] is None


def test_facts_of_a_file(tmp_path):
    path = tmp_path / "captions.json"
    path.write_bytes(b"[]")
    assert provenance.file_facts(str(path)) == {
        "path": str(path),
        "bytes": 2,
        "sha256": "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945",
    }
    with pytest.raises(InputError, match="none cannot be read: No such file"):
        provenance.file_facts(tmp_path / "none")


def test_hashes_are_those_of_every_earlier_version():
    """Answers in caches and marks of finished shards are found by them."""
    content = ["x", 1, None, 0.5, {"\u00e9": [True]}]
    assert provenance.content_hash(content) == "31e11a655e02d581dc33c9999a5ee866"
