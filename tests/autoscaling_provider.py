"""A node provider for Ray's autoscaler whose nodes are processes on this machine. Ray's monitor imports it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import NODE_KIND_HEAD, STATUS_UP_TO_DATE, TAG_RAY_NODE_STATUS

HEAD = "1"  # node ids are numbers: Ray finds them again as the resource NODE_ID_AS_RESOURCE


class Provider(NodeProvider):
    """`provider_config`: `python`, `gcs_address`, and `folder`, where each node leaves the pid of its `ray start`."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        head = {"ray-node-type": NODE_KIND_HEAD, "ray-user-node-type": "head", TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}
        self._tags: dict[str, dict[str, str]] = {HEAD: head}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.RLock()

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        return cluster_config

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        with self._lock:
            return [node for node, tags in self._tags.items() if tag_filters.items() <= tags.items()]

    def is_running(self, node_id: str) -> bool:
        return node_id in self._tags

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._tags

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self._tags[node_id]

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        self._tags[node_id].update(tags)

    def internal_ip(self, node_id: str) -> str:
        return node_id

    def external_ip(self, node_id: str) -> str:
        return node_id

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: dict[str, float], labels: dict[str, str]
    ) -> None:
        for _ in range(count):
            with self._lock:
                node = str(int(HEAD) + 1 + len(self._processes))
                self._processes[node] = self._start(node, tags["ray-user-node-type"], resources, labels)
                self._tags[node] = {**tags, TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}

    def create_node(self, node_config: Any, tags: dict[str, str], count: int) -> None:
        raise NotImplementedError

    def _start(
        self, node: str, node_type: str, resources: dict[str, float], labels: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        folder = Path(self.provider_config["folder"])
        custom = {**{name: amount for name, amount in resources.items() if name not in ("CPU", "memory")}}
        custom["NODE_ID_AS_RESOURCE"] = int(node)
        process = subprocess.Popen(
            [
                self.provider_config["python"], "-m", "ray.scripts.scripts", "start", "--block",
                "--address", self.provider_config["gcs_address"],
                "--num-cpus", "0",
                "--resources", json.dumps(custom),
                "--labels", ",".join(f"{name}={value}" for name, value in labels.items()),
                "--temp-dir", str(folder / f"n{node}"),
                "--min-worker-port", "0",
                "--max-worker-port", "0",
                "--dashboard-agent-listen-port", "0",
                "--object-store-memory", "150000000",
                "--disable-usage-stats",
            ],
            env={
                **os.environ,
                "RAY_CLOUD_INSTANCE_ID": node,
                "RAY_NODE_TYPE_NAME": node_type,
                "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
                # What a cluster config of `ray up` has in its `ray start` command.
                "REMOTERL_REGISTER": "only_here",
                "RAY_preload_python_modules": "remoterl.actors.preload",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        (folder / f"{node}.pid").write_text(str(process.pid))
        return process

    def terminate_node(self, node_id: str) -> None:
        with self._lock:
            if self._tags.pop(node_id, None) is None:
                return
        process = self._processes[node_id]
        process.send_signal(signal.SIGTERM)
        process.wait(30)
