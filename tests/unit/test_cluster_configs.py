"""Every file of cluster_configs through the checker of whom it is for. No cloud is reached."""

from __future__ import annotations

import configparser
import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from remoterl.actors.directory import RESOURCE

FOLDER = Path(__file__).resolve().parents[2] / "cluster_configs"
CLOUDS = ["aws", "gcp", "azure"]
KUBERNETES = "1.33"
# The fields of KubeRay's v1 that these manifests may use (ray-operator/apis/ray/v1); pod templates are Kubernetes' own.
GROUP = {
    "type": "object",
    "required": ["rayStartParams", "template"],
    "properties": {
        "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
        "template": {"type": "object", "required": ["spec"]},
    },
}
WORKER_GROUP = {
    **GROUP,
    "required": [*GROUP["required"], "groupName", "minReplicas", "maxReplicas"],
    "additionalProperties": False,
    "properties": {
        **GROUP["properties"],
        "groupName": {"type": "string"},
        **{key: {"type": "integer", "minimum": 0} for key in ("replicas", "minReplicas", "maxReplicas")},
    },
}
CLUSTER = {
    "type": "object",
    "required": ["headGroupSpec"],
    "additionalProperties": False,
    "properties": {
        "rayVersion": {"type": "string"},
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"idleTimeoutSeconds": {"type": "integer"}, "env": {"type": "array"}},
        },
        "headGroupSpec": {**GROUP, "additionalProperties": False},
        "workerGroupSpecs": {"type": "array", "items": WORKER_GROUP},
    },
}
JOB = {
    "type": "object",
    "required": ["entrypoint", "rayClusterSpec"],
    "additionalProperties": False,
    "properties": {
        "entrypoint": {"type": "string"},
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": {"type": "integer"},
        "submitterPodTemplate": {"type": "object", "required": ["spec"]},
        "rayClusterSpec": CLUSTER,
    },
}


class Strict(yaml.SafeLoader):
    """YAML's rule that PyYAML does not keep: a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(keys)), f"a key stands twice: {keys} ({node.start_mark})"
        return super().construct_mapping(node, deep)


def cluster_config(name: str) -> dict[str, Any]:
    return yaml.load((FOLDER / f"{name}.yaml").read_text(), Strict)


@pytest.mark.parametrize("name", [*CLOUDS, "on_premises"])
def test_ray_up_takes_it(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(cluster_config(name)))
    validate_config(config)
    commands = " ".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    assert commands.count("RAY_AUTH_MODE=token") == 2 and "--autoscaling-config=~/ray_bootstrap_config.yaml" in commands
    assert "RAY_preload_python_modules=remoterl.actors.preload" in commands and "REMOTERL_REGISTER=" in commands
    assert "--ray-client-server-port=10001" in commands
    assert "~/.ray/auth_token" in config["file_mounts"]


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cloud_starts_simulators_when_they_are_asked_for(name: str) -> None:
    types = cluster_config(name)["available_node_types"]
    simulator, trainer = types["simulator"], types["gpu_trainer"]
    assert (
        simulator["resources"] == {"CPU": 0, RESOURCE: 8} and simulator["min_workers"] == 0 < simulator["max_workers"]
    )
    assert trainer["resources"]["GPU"] == 1 and trainer["min_workers"] == 0
    assert any(word in yaml.safe_dump(simulator) for word in ("spot", "preemptible", "Spot"))


@pytest.mark.parametrize("path", [*FOLDER.glob("*.yaml"), FOLDER / "Dockerfile", FOLDER / "remoterl-simulator.service"])
def test_what_to_change_is_marked(path: Path) -> None:
    assert path.read_text().startswith("# ") and "CHANGE" in path.read_text()


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.load_all((FOLDER / f"kuberay-{name}.yaml").read_text(), Strict))


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """The pod templates in a manifest, wherever they are."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("template", "submitterPodTemplate"):
                yield inner
            else:
                yield from pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pods(inner)


@pytest.mark.parametrize("name", ["cluster", "job"])
def test_kubernetes_takes_it(name: str) -> None:
    import kubernetes_validate

    for manifest in manifests(name):
        if manifest["apiVersion"] == "v1":
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
            continue
        assert manifest["apiVersion"] == "ray.io/v1"
        jsonschema.validate(manifest["spec"], {"RayCluster": CLUSTER, "RayJob": JOB}[manifest["kind"]])
        templates = list(pods(manifest["spec"]))
        assert len(templates) == 3
        for template in templates:
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
            (container,) = template["spec"]["containers"]
            (token,) = (one for one in container["env"] if one["name"] == "RAY_AUTH_TOKEN")
            assert token["valueFrom"]["secretKeyRef"]["key"] == "auth_token"


@pytest.mark.parametrize("name", ["cluster", "job"])
def test_kubernetes_simulators_come_and_go(name: str) -> None:
    spec = manifests(name)[-1]["spec"]
    spec = spec.get("rayClusterSpec", spec)
    assert spec["enableInTreeAutoscaling"]
    simulator = spec["workerGroupSpecs"][0]
    parameters = simulator["rayStartParams"]
    # KubeRay puts it between the words of a shell's command, hence the quotes within.
    assert json.loads(json.loads(parameters["resources"])) == {RESOURCE: 8} and parameters["num-cpus"] == "0"
    assert simulator["minReplicas"] == 0 < simulator["maxReplicas"]
    variables = {one["name"]: one.get("value") for one in simulator["template"]["spec"]["containers"][0]["env"]}
    assert variables["RAY_preload_python_modules"] == "remoterl.actors.preload" and "REMOTERL_REGISTER" in variables


def test_compose() -> None:
    services = cluster_config("compose")["services"]
    assert set(services) == {"hub", "simulator", "trainer"}
    for service in services.values():
        assert "choose a key" in service["environment"]["REMOTERL_API_KEY"]
    words = [service["command"].split() for service in services.values() if "command" in service]
    assert [command[1] for command in words] == ["hub", "simulate"]


def test_docker_takes_the_compose_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not on this machine")
    checked = subprocess.run(
        [docker, "compose", "-f", str(FOLDER / "compose.yaml"), "config", "--quiet"],
        env={"PATH": str(Path(docker).parent), "REMOTERL_API_KEY": "a-key"},
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    source = (FOLDER / "remoterl-simulator.service").read_text()
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(source)
    assert unit["Service"]["KillMode"] == "mixed" and unit["Service"]["Restart"] == "always"
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not on this machine")
    installed = tmp_path / "remoterl-simulator.service"
    installed.write_text(source.replace("/opt/remoterl/bin/remoterl", f"{sys.executable} -m remoterl"))
    checked = subprocess.run(["systemd-analyze", "verify", str(installed)], capture_output=True, text=True)
    complaints = [line for line in checked.stderr.splitlines() if installed.name in line]
    assert complaints == [], checked.stderr
