"""The box's own certificate: made at its first start over the network, and never again. Laptops know it by its SHA-256.

Nobody signs it and nobody reads its names but browsers: who trusts it has got its fingerprint over ssh.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from collections.abc import Sequence

from runner import files
from runner.errors import StateDamaged


class Certificate:
    def __init__(self, folder: str, names: Sequence[str]) -> None:
        """The one in a folder, or a new one for these names. StateDamaged: what is there is not a pair."""
        self._file = f"{folder}/box.pem"  # both in one file: there is never one without the other
        if not os.path.exists(self._file):
            from runner.box.selfsigned import self_signed  # only the first start pays for it

            files.make_dir(folder)
            files.replace(self._file, self_signed(names))
        try:
            self.context = self._context()
            with open(self._file) as file:
                self.fingerprint = fingerprint(ssl.PEM_cert_to_DER_cert(_first(file.read())))
        except (OSError, ValueError) as error:
            hint = "move it away: a new one is made, and laptops are then added again"
            raise StateDamaged(f"the box's certificate {self._file} can't be used: {error}", hint) from error

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.num_tickets = 0  # nobody resumes; in a tunnel the reply would wait until they are acknowledged (40 ms)
        context.load_cert_chain(self._file)
        return context


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of its DER, in hex."""
    return hashlib.sha256(certificate).hexdigest()


def _first(pem: str) -> str:
    """The certificate that is shown; others may follow it, as in what an authority gave."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return begin + pem.partition(begin)[2].partition(end)[0] + end
