"""Signed bundles: openssl's keys and ours agree; what is not signed, or by another, cannot be read or served."""

import base64
import subprocess
from pathlib import Path

import pytest

from monitoring.processes import ANY_PORTS
from mtlops.bundle import Bundle
from mtlops.cli import main
from mtlops.errors import ArtefactError, UsageError
from mtlops.registry import Registry
from mtlops.signatures import Signer, Verifier
from tests.serving.processes import serving
from tests.serving.test_follower import bundle_served, wait_for
from tests.serving.variants import make_champion, retrained
from tests.small_bundles import make_bundle
from tests.tiny_suite import Workspace


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs, as the docs say to make them: a.pem, a.pub, b.pem, b.pub."""
    folder = tmp_path_factory.mktemp("keys")
    for name in "ab":
        key = folder / f"{name}.pem"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
        subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", folder / f"{name}.pub"], check=True)
    return folder


def test_openssl_accepts_our_signature(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(b"some bytes")
    (tmp_path / "signature").write_bytes(base64.b64decode(Signer(keys / "a.pem").sign(b"some bytes")))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", keys / "a.pub", "-rawin"]
    files = ["-in", tmp_path / "content", "-sigfile", tmp_path / "signature"]
    assert subprocess.run([*command, *files], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("signature", [None, b"", b"?", b"AAAA", "other key", "other bytes"])
def test_anything_but_the_signature_is_refused(keys: Path, signature: bytes | str | None) -> None:
    verifier, signer = Verifier(keys / "a.pub"), Signer(keys / "a.pem")
    verifier.check(b"x", signer.sign(b"x"), where="here")
    if signature == "other key":
        signature = Signer(keys / "b.pem").sign(b"x")
    if signature == "other bytes":
        signature = signer.sign(b"y")
    assert not isinstance(signature, str)
    with pytest.raises(ArtefactError, match="^here: (is not signed|its signature is not of the key)"):
        verifier.check(b"x", signature, where="here")


@pytest.mark.parametrize("made", [Signer, Verifier])
def test_a_file_that_is_no_key_is_told(keys: Path, tmp_path: Path, made: type) -> None:
    rsa = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "genrsa", "-out", rsa, "2048"], check=True, capture_output=True)
    wrong = keys / ("a.pub" if made is Signer else "a.pem")
    for path in (rsa, wrong, tmp_path / "none"):
        with pytest.raises(UsageError, match="holds no Ed25519|cannot be read"):
            made(path)


def test_a_registry_with_a_key_reads_signed_bundles_alone_and_gc_takes_signatures_along(
    keys: Path, tmp_path: Path
) -> None:
    plain, strict = Registry(tmp_path / "r"), Registry(tmp_path / "r", verifier=Verifier(keys / "a.pub"))
    ids = [make_bundle(tmp_path / f"b{i}", trunk=i) for i in range(3)]
    assert [plain.publish(tmp_path / f"b{i}") for i in range(3)] == ids
    plain.sign(ids[0], Signer(keys / "a.pem"))
    plain.sign(ids[1], Signer(keys / "b.pem"))
    assert strict.manifest(ids[0]) == plain.manifest(ids[0]) and strict.fetch(ids[0], tmp_path / "cache")
    for bundle_id, reason in ((ids[1], "not of the key"), (ids[2], "is not signed")):
        for read in (strict.manifest, lambda name: strict.fetch(name, tmp_path / "cache")):
            with pytest.raises(ArtefactError, match=reason):
                read(bundle_id)
    plain.gc(keep=0, grace_seconds=0)
    assert not plain.ids() and not list((tmp_path / "r").rglob("*.ed25519"))


@pytest.mark.e2e
def test_a_server_with_a_key_swaps_to_signed_bundles_alone(
    finished: Workspace, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, registry = Bundle.open(finished.bundle), Registry(tmp_path / "registry")
    others = [retrained(bundle, tmp_path / f"o{i}", task="topic", seed=i) for i in range(2)]
    first, unsigned, signed = (registry.publish(one.folder) for one in (bundle, *others))
    make_champion(registry, first)
    command = ["serve", "--registry", registry.url, "--verify-key", str(keys / "a.pub"), "--cache", str(tmp_path / "c")]
    assert main([*command, *ANY_PORTS]) == 4
    assert "is not signed" in capsys.readouterr().err
    for bundle_id in (first, signed):
        registry.sign(bundle_id, Signer(keys / "a.pem"))
    options = ("--registry", registry.url, "--verify-key", str(keys / "a.pub"), "--poll-seconds", "0.02")
    with serving(tmp_path / "server", *options, "--drain-seconds", "0") as server:
        make_champion(registry, unsigned)
        wait_for(lambda: server.metric('mtlops_swap_total{outcome="failed"}') == 1)
        assert bundle_served(server) == first
        assert "is not signed" in server.get("/status", "admin")[1]["last_swap"]["reason"]
        make_champion(registry, signed)
        wait_for(lambda: bundle_served(server) == signed)
