"""Is there a hub at this address, and does it take this key? Asked in milliseconds, without touching Ray.

Ray itself takes 20 s and more to say that a token is wrong or that nobody listens.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
import uuid
from enum import Enum
from pathlib import Path
from typing import Any

from remoterl._logging import logger
from remoterl.channels import tls
from remoterl.cluster import auth
from remoterl.config import Address
from remoterl.errors import AuthenticationError, ConfigurationError

RETRY_PERIOD_S = 0.3
ONE_PROBE_S = 3.0
NOTE_S = 8.0  # an upload may fill the way
MARK = b"remoterl:hub"
NEVER = threading.Event()  # of who is not to be stopped


class Answer(Enum):
    """What stands at an address."""

    ACCEPTED = "accepted"
    REFUSED_KEY = "refused the key"
    WRONG_PORT = "is another kind of port"
    UNREACHABLE = "unreachable"


def ask(address: Address, api_key: str | None, timeout_s: float = ONE_PROBE_S) -> Answer:
    """One cheap call to the client port (`ray://`) or to the GCS port, with the key as Ray sends it."""
    return identify(address, api_key, timeout_s, mark=False)[0]


def identify(
    address: Address, api_key: str | None, timeout_s: float = ONE_PROBE_S, mark: bool = True
) -> tuple[Answer, bytes]:
    """The same, and which cluster it is: a hub that starts anew is another.

    Ray Client's port does not say; there (but for `mark` False) the hub is given a mark, which it loses with the rest.
    Empty where it takes none.
    """
    import grpc
    from ray.core.generated import gcs_service_pb2 as gcs
    from ray.core.generated import gcs_service_pb2_grpc as gcs_grpc
    from ray.core.generated import ray_client_pb2 as client
    from ray.core.generated import ray_client_pb2_grpc as client_grpc

    metadata = _metadata(api_key)
    with _open_channel(address.target) as channel:
        try:
            if address.kind == "client":
                client_grpc.RayletDriverStub(channel).ClusterInfo(
                    client.ClusterInfoRequest(type=client.ClusterInfoType.PING),
                    metadata=metadata,
                    timeout=timeout_s,
                )
                return Answer.ACCEPTED, _mark(
                    client_grpc.RayletDriverStub(channel), metadata, timeout_s
                ) if mark else b""
            reply = gcs_grpc.NodeInfoGcsServiceStub(channel).GetClusterId(
                gcs.GetClusterIdRequest(), metadata=metadata, timeout=timeout_s
            )
            return Answer.ACCEPTED, reply.cluster_id
        except grpc.RpcError as error:
            answer = {
                grpc.StatusCode.UNAUTHENTICATED: Answer.REFUSED_KEY,
                grpc.StatusCode.UNIMPLEMENTED: Answer.WRONG_PORT,
            }.get(error.code(), Answer.UNREACHABLE)
            return answer, b""


def note(address: Address, api_key: str | None, key: bytes, value: bytes | None) -> bool:
    """Put a value (None: nothing) into the hub's own key-value store, beside Ray Client's connection.

    Returns:
        False where Ray Client's port did not take it, or can't be asked.
    """
    import grpc
    from ray.core.generated import ray_client_pb2 as client
    from ray.core.generated import ray_client_pb2_grpc as client_grpc

    options = _options_of_nobody(_metadata(api_key), NOTE_S)
    try:
        with _open_channel(address.target) as channel:
            stub = client_grpc.RayletDriverStub(channel)
            if value is None:
                stub.KVDel(client.KVDelRequest(key=key), **options)
            else:
                stub.KVPut(client.KVPutRequest(key=key, value=value, overwrite=True), **options)
    except (grpc.RpcError, ConfigurationError):  # of TLS's files, which may be gone by now
        return False
    return True


def _metadata(api_key: str | None) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {api_key}")] if api_key else []


def _options_of_nobody(metadata: list[tuple[str, str]], timeout_s: float) -> dict[str, Any]:
    """For the hub's own key-value store, which it answers for whoever is no client of it (yet)."""
    return {"metadata": [*metadata, ("client_id", uuid.uuid4().hex)], "timeout": timeout_s}


def _mark(stub: Any, metadata: list[tuple[str, str]], timeout_s: float) -> bytes:
    import grpc
    from ray.core.generated import ray_client_pb2 as client

    options = _options_of_nobody(metadata, timeout_s)
    try:
        stub.KVPut(client.KVPutRequest(key=MARK, value=uuid.uuid4().bytes, overwrite=False), **options)
        return stub.KVGet(client.KVGetRequest(key=MARK), **options).value
    except grpc.RpcError:
        return b""


def wait_for_hub(address: Address, api_key: str | None, timeout_s: float, stopped: threading.Event = NEVER) -> bool:
    """Ask until the hub answers.

    Returns:
        False where nobody answered within `timeout_s`, or before `stopped` was set.

    Raises:
        AuthenticationError: the hub refused the key, or wants one and got none.
        ConfigurationError: the port is not of the kind that the address says, or TLS keeps the two apart.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = ask(address, api_key, min(ONE_PROBE_S, max(0.1, deadline - time.monotonic())))
        if answer is Answer.REFUSED_KEY:
            raise AuthenticationError(
                f"The hub at {address} refused the key that was given. Take the key from whoever runs the hub."
                if api_key
                else f"The hub at {address} needs a key and none was given. Pass api_key=... or set REMOTERL_API_KEY."
            )
        if answer is Answer.WRONG_PORT:
            raise ConfigurationError(
                f"{address} is not a Ray Client port; leave 'ray://' out for the hub's own port, or use its client "
                "port (10001 by default)."
                if address.kind == "client"
                else f"{address} is not a Ray hub's port; it looks like a Ray Client port: write 'ray://{address}'."
            )
        if answer is Answer.ACCEPTED:
            if api_key and ask(address, None) is Answer.ACCEPTED:
                logger.warning(
                    "A key was given, but the hub at %s checks none: anyone who reaches it can use it.",
                    address,
                )
            return True
        refuse_other_tls(address, min(ONE_PROBE_S, max(0.1, deadline - time.monotonic())))
        if time.monotonic() + RETRY_PERIOD_S >= deadline or stopped.wait(RETRY_PERIOD_S):
            return False


def checked_key(address: Address, api_key: str | None) -> str | None:
    """The key for Ray: the one given, or `NO_KEY` where this hub, which answers, checks none."""
    return auth.NO_KEY if api_key and ask(address, None) is Answer.ACCEPTED else api_key


def refuse_other_tls(address: Address, timeout_s: float = ONE_PROBE_S) -> None:
    """Return where nobody listens, or somebody who did not answer for another reason than TLS.

    Raises:
        ConfigurationError: TLS keeps this process and the hub apart; the message says how.
    """
    try:
        connected = socket.create_connection((address.host, address.port), timeout_s)
    except OSError:
        return
    with connected:
        hub_uses_tls = _speaks_tls(connected)
    if hub_uses_tls is None:
        return
    if hub_uses_tls != tls.is_on():
        sides = ("The hub at {}", "this process") if hub_uses_tls else ("This process", "the hub at {}")
        raise ConfigurationError(
            f"{sides[0]} uses TLS (RAY_USE_TLS=1), {sides[1]} does not. Both need it, with "
            f"{tls.CERTIFICATE}, {tls.KEY} and {tls.AUTHORITY}, or neither.".format(address)
        )
    fault = _certificate_fault(address, timeout_s) if hub_uses_tls else None
    if fault is not None:
        raise ConfigurationError(
            f"TLS with the hub at {address} failed: {fault}. Both need a certificate ({tls.CERTIFICATE}) that the "
            f"other's {tls.AUTHORITY} has signed and that names the address by which it is reached."
        )


def _speaks_tls(connected: socket.socket) -> bool | None:
    """Does the other end answer as a TLS server does? None: it says nothing. Nothing is proved or trusted by this."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        context.wrap_socket(connected).close()
    except ssl.SSLError as error:
        reason = error.reason or ""
        return True if "ALERT" in reason else False if reason == "WRONG_VERSION_NUMBER" else None
    except OSError:
        return None
    return True


def _certificate_fault(address: Address, timeout_s: float) -> str | None:
    """Why the two refuse each other's certificates, if they do."""
    try:
        context = tls.client_context()
        assert context is not None
        context.set_alpn_protocols(["h2"])
        with socket.create_connection((address.host, address.port), timeout_s) as connected:
            secured = context.wrap_socket(connected, server_hostname=address.host)
            secured.recv(1)  # the other end's refusal comes after our half of the handshake
    except ssl.SSLError as error:
        return str(error)
    except (OSError, KeyError):
        return None
    return None


def _open_channel(target: str):  # type: ignore[no-untyped-def]
    import grpc

    options = [("grpc.enable_http_proxy", 0)]
    if not tls.is_on():
        return grpc.insecure_channel(target, options=options)
    try:
        certificate, private_key, authority = (Path(os.environ[name]).read_bytes() for name in tls.VARIABLES)
    except (KeyError, OSError) as error:
        raise ConfigurationError(
            f"RAY_USE_TLS is set; then {', '.join(tls.VARIABLES)} must each name a PEM file that can be read here "
            f"({type(error).__name__}: {error})."
        ) from None
    credentials = grpc.ssl_channel_credentials(authority, private_key, certificate)
    return grpc.secure_channel(target, credentials, options=options)
