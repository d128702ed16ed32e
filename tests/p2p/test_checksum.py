"""Checksums agree with git-annex's for every supported backend."""

from __future__ import annotations

from cluster_remote.p2p.checksum import _ALGORITHMS, Checksum
from cluster_remote.p2p.key import Key
from tests.support.environment import Environment


def test_every_backend_hashes_as_git_annex_does(environment: Environment) -> None:
    environment.run("git", "init", "--quiet", cwd=environment.directory)
    path = environment.directory / "photo.jpg"
    path.write_bytes(b"content")
    for backend in [*_ALGORITHMS, "BLAKE2B256E", "SHA256E"]:
        done = environment.run("git-annex", "calckey", "--backend", backend, str(path), cwd=environment.directory)
        for content, right in ((b"content", True), (b"Content", False)):
            checksum = Checksum.of(Key(done.stdout.decode().strip()))
            assert checksum is not None
            checksum.update(content)
            assert checksum.matches() == right, backend


def test_a_hash_that_is_not_supported_is_not_guessed() -> None:
    assert Checksum.of(Key("SKEIN256-s1--ab")) is None
    assert Checksum.of(Key("BLAKE2BP512-s1--ab")) is None
    assert Checksum.of(Key("SHA256-s9-S5-C1--ab")) is None
