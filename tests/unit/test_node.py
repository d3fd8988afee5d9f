"""Which ports a node of Ray takes. No node is started here."""

from __future__ import annotations

import math
import socket

from processes import free_ports

from remoterl.cluster.node import Node, Ports


def node() -> Node:
    return Node(name="hub", units=0, address=None, api_key=None, labels={}, num_cpus=0)


def test_the_address_of_another_hub_is_not_ours(monkeypatch, tmp_path) -> None:
    """A machine's hubs write theirs into one file."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    one = node()
    one._gcs_port = 6400
    assert one._marked_address() is None
    for address, is_ours in {"10.0.0.1:6379": False, "10.0.0.1:6400": True, "": False}.items():
        one._marker.write_text(address)
        assert one._marked_address() == (address if is_ours else None)
    one.stop()


def test_how_many_workers_a_range_of_ports_has_room_for() -> None:
    assert Ports().room() == math.inf and Ports(rest=(20_000, 20_031)).room() == 26


def test_two_hubs_that_start_together_choose_different_ports() -> None:
    """Neither listens yet."""
    [usual] = free_ports(1)
    first, second, third = node(), node(), node()
    try:
        assert first._claim_port(usual) == usual
        assert second._claim_port(usual) not in (usual, 0)
        first.stop()
        assert third._claim_port(usual) == usual
    finally:
        for one in (first, second, third):
            one.stop()


def test_a_port_that_somebody_listens_on_is_left_to_him() -> None:
    one = node()
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert one._claim_port(port) != port
    assert one._claim_port(port) == port  # nothing stands for it any more
    one.stop()
