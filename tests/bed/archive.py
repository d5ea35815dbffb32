"""An apt repository of stand-in packages, for what only others' servers have: same names, nothing of theirs inside.

    archive = Archive(tmp_path / "cuda", label="NVIDIA CUDA")
    archive.add("nvidia-kernel-open-dkms", "580.95.05-1", depends="dkms", files={"/usr/src/...": "text"},
                scripts={"postinst": "#!/bin/sh\\n..."})
    archive.add("cuda-toolkit-13-0", "13.0.2-1", files={"/usr/local/cuda-13.0/bin/nvcc": "#!/bin/sh\\n"})
    archive.publish()                      # indexes and signs what was added; again after more was added
    url = archive.serve(host, port=8901)   # copies it to a host of the bed, which serves it to itself; again: anew
    archive.key                            # the public key, armored; archive.fingerprint

It is flat, as NVIDIA's is: `deb [signed-by=KEY] URL /`. A second version of a package stays beside the first.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from email.utils import formatdate
from pathlib import Path

from bed.commands import call, until
from bed.host import Host

TOOLS = ("dpkg-deb", "dpkg-scanpackages", "gpg", "gpgconf")
SIGNER = "gpubox stand-ins"
INDEXES = ("Packages", "Release", "InRelease")


class Archive:
    """folder: made here, and the tests' own; label: what a pin calls it (l=)."""

    def __init__(self, folder: Path, label: str = "stand-ins") -> None:
        self.folder = folder
        self.label = label
        folder.mkdir(parents=True)
        self._ring = folder.with_name(f"{folder.name}.gnupg")
        self._ring.mkdir(mode=0o700)
        self._gpg("--passphrase", "", "--quick-generate-key", SIGNER, "ed25519", "sign", "never")
        self.key = self._gpg("--armor", "--export", SIGNER)
        rows = self._gpg("--with-colons", "--list-keys", SIGNER).splitlines()
        self.fingerprint = next(row.split(":")[9] for row in rows if row.startswith("fpr"))

    def add(
        self,
        name: str,
        version: str = "1.0-1",
        *,
        depends: str = "",
        architecture: str = "all",
        files: Mapping[str, str] | None = None,
        scripts: Mapping[str, str] | None = None,
        **fields: str,
    ) -> Path:
        """Make a package. files: path -> text, executable where it begins with #!; scripts: postinst, prerm, ...;
        fields: more of its control file, as conflicts="..." or pre_depends="..."."""
        more = {"depends": depends, **fields}
        rows = "".join(f"{key.title().replace('_', '-')}: {value}\n" for key, value in more.items() if value)
        control = (
            f"Package: {name}\nVersion: {version}\nArchitecture: {architecture}\n"
            f"Maintainer: {SIGNER} <tests@invalid>\nDescription: stands in for {name}\n{rows}"
        )
        with tempfile.TemporaryDirectory() as place:
            root = Path(place)
            for path, text in {f"DEBIAN/{one}": text for one, text in (scripts or {}).items()}.items():
                _write(root / path, text, 0o755)
            _write(root / "DEBIAN/control", control, 0o644)
            for path, text in (files or {}).items():
                _write(root / path.lstrip("/"), text, 0o755 if text.startswith("#!") else 0o644)
            root.chmod(0o755)
            target = self.folder / f"{name}_{version.replace(':', '%3a')}_{architecture}.deb"
            call("dpkg-deb", "--root-owner-group", "--build", str(root), str(target))
        return target

    def publish(self) -> None:
        """Index and sign what is there."""
        packages = call("dpkg-scanpackages", "--multiversion", str(self.folder))
        packages = packages.replace(f"Filename: {self.folder}/", "Filename: ./")
        (self.folder / "Packages").write_text(packages)
        data = packages.encode()
        release = (
            f"Origin: {SIGNER}\nLabel: {self.label}\nDate: {formatdate(usegmt=True)}\n"
            f"SHA256:\n {hashlib.sha256(data).hexdigest()} {len(data)} Packages\n"
        )
        (self.folder / "Release").write_text(release)
        (self.folder / "InRelease").unlink(missing_ok=True)
        self._gpg("--clearsign", "--output", str(self.folder / "InRelease"), str(self.folder / "Release"))

    def serve(self, host: Host, port: int = 8901) -> str:
        """Have a host serve it to itself; its URL there. A host that restarts has to be told again."""
        root = "" if host.user == "root" else "sudo "
        place, unit = f"/srv/stand-ins-{port}", f"stand-ins-{port}"
        host.run(f"rm -rf /tmp/{unit}")
        host.put(self.folder, f"/tmp/{unit}")
        host.run(f"{root}rm -rf {place} && {root}cp -r /tmp/{unit} {place} && rm -r /tmp/{unit}")
        server = f"python3 -m http.server --bind 127.0.0.1 --directory {place} {port}"
        host.run(f"systemctl is-active --quiet {unit} || {root}systemd-run --quiet --unit {unit} {server}")
        url = f"http://127.0.0.1:{port}"
        answers = f"python3 -c 'import urllib.request as r; r.urlopen(\"{url}/InRelease\")'"
        until(lambda: host.ssh(answers).returncode == 0, 20, lambda: f"{url} does not answer on {host.name}")
        return url

    def remove(self) -> None:
        """Forget it, with its key."""
        for folder in (self.folder, self._ring):
            shutil.rmtree(folder, ignore_errors=True)

    def _gpg(self, *words: str) -> str:
        try:
            alone = ("--homedir", str(self._ring), "--batch", "--quiet", "--pinentry-mode", "loopback")
            return call("gpg", *alone, *words)
        finally:
            call("gpgconf", "--homedir", str(self._ring), "--kill", "all")  # its agent would stay


def _write(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
