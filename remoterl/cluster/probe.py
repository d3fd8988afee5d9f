"""Is there a hub at this address, and does it take this key? Asked in milliseconds, without touching Ray.

Ray itself takes 20 s and more to say that a token is wrong or that nobody listens.
"""

from __future__ import annotations

import os
import time
from enum import Enum

from remoterl._logging import logger
from remoterl.config import Address
from remoterl.errors import AuthenticationError, ConfigurationError

RETRY_PERIOD_S = 0.3
ONE_PROBE_S = 3.0


class Answer(Enum):
    """What stands at an address."""

    ACCEPTED = "accepted"
    REFUSED_KEY = "refused the key"
    WRONG_PORT = "is another kind of port"
    UNREACHABLE = "unreachable"


def ask(address: Address, api_key: str | None, timeout_s: float = ONE_PROBE_S) -> Answer:
    """One cheap call to the client port (`ray://`) or to the GCS port, with the key as Ray sends it."""
    import grpc
    from ray.core.generated import gcs_service_pb2 as gcs
    from ray.core.generated import gcs_service_pb2_grpc as gcs_grpc
    from ray.core.generated import ray_client_pb2 as client
    from ray.core.generated import ray_client_pb2_grpc as client_grpc

    metadata = [("authorization", f"Bearer {api_key}")] if api_key else None
    with _open_channel(address.target) as channel:
        try:
            if address.kind == "client":
                client_grpc.RayletDriverStub(channel).ClusterInfo(
                    client.ClusterInfoRequest(type=client.ClusterInfoType.PING),
                    metadata=metadata,
                    timeout=timeout_s,
                )
            else:
                gcs_grpc.NodeInfoGcsServiceStub(channel).GetClusterId(
                    gcs.GetClusterIdRequest(), metadata=metadata, timeout=timeout_s
                )
        except grpc.RpcError as error:
            return {
                grpc.StatusCode.UNAUTHENTICATED: Answer.REFUSED_KEY,
                grpc.StatusCode.UNIMPLEMENTED: Answer.WRONG_PORT,
            }.get(error.code(), Answer.UNREACHABLE)
    return Answer.ACCEPTED


def wait_for_hub(address: Address, api_key: str | None, timeout_s: float) -> bool:
    """Ask until the hub answers.

    Returns:
        False where nobody answered within `timeout_s`.

    Raises:
        AuthenticationError: the hub refused the key, or wants one and got none.
        ConfigurationError: the port is not of the kind that the address says.
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
        if time.monotonic() + RETRY_PERIOD_S >= deadline:
            return False
        time.sleep(RETRY_PERIOD_S)


def _open_channel(target: str):  # type: ignore[no-untyped-def]
    import grpc

    options = [("grpc.enable_http_proxy", 0)]
    if os.environ.get("RAY_USE_TLS", "").lower() not in ("1", "true"):
        return grpc.insecure_channel(target, options=options)
    from ray._private.tls_utils import load_certs_from_env

    certificate, key, authority = load_certs_from_env()
    credentials = grpc.ssl_channel_credentials(
        root_certificates=authority, private_key=key, certificate_chain=certificate
    )
    return grpc.secure_channel(target, credentials, options=options)
