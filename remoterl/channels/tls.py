"""TLS for streams where Ray has it: by Ray's own variables, and mutual like Ray's.

Source: Ray 2.60, `RAY_USE_TLS`, `RAY_TLS_SERVER_CERT`, `RAY_TLS_SERVER_KEY`, `RAY_TLS_CA_CERT`. Every process shows
the one certificate that they name, as server and as client, and checks the other's against the authority's.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping

CERTIFICATE, KEY, AUTHORITY = "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"
VARIABLES = (CERTIFICATE, KEY, AUTHORITY)


def is_on(environ: Mapping[str, str] = os.environ) -> bool:
    """Does this process's Ray use TLS?"""
    return environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def server_context(environ: Mapping[str, str] = os.environ) -> ssl.SSLContext | None:
    """For an env runner; a trainer must show a certificate of the same authority. None where TLS is off.

    Raises:
        OSError, KeyError: a certificate variable is missing or names what can't be read.
    """
    return _context(ssl.PROTOCOL_TLS_SERVER, environ)


def client_context(environ: Mapping[str, str] = os.environ) -> ssl.SSLContext | None:
    """For a trainer; the env runner's certificate must name the address that it is reached at, as Ray's must.

    None where TLS is off; raises as `server_context`.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, environ)


def _context(protocol: int, environ: Mapping[str, str]) -> ssl.SSLContext | None:
    if not is_on(environ):
        return None
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(environ[CERTIFICATE], environ[KEY])
    context.load_verify_locations(environ[AUTHORITY])
    context.verify_mode = ssl.CERT_REQUIRED
    return context
