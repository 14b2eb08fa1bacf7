"""Certificate authorities, and the certificates that they sign, made with openssl."""

import subprocess
from pathlib import Path


class Authority:
    """A certificate authority of its own; `ca` is its certificate."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self.ca = folder / f"{name}.crt"
        self._key = folder / f"{name}.key"
        _openssl("req", "-x509", *_NEW_KEY, *_files(self.ca, self._key), "-subj", f"/CN={name}", "-days", "2")

    def issue(self, cert: Path, key: Path, *, days: int = 2) -> None:
        """Write a certificate for 127.0.0.1 and localhost, and its key, in place of what is there.

        With negative `days` it has expired.
        """
        request, extensions = self._folder / "request", self._folder / "extensions"
        new_cert, new_key = self._folder / "issued.crt", self._folder / "issued.key"
        _openssl("req", *_NEW_KEY, *_files(request, new_key), "-subj", f"/CN=signed by {self._name}")
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        signer = ("-CA", self.ca, "-CAkey", self._key, "-days", days, "-extfile", extensions)
        _openssl("x509", "-req", "-in", request, "-out", new_cert, *signer)
        new_cert.replace(cert)
        new_key.replace(key)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _files(cert: Path, key: Path) -> tuple[object, ...]:
    return ("-out", cert, "-keyout", key)


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
