"""Every file of cluster_configs through the checker of whom it is for. No cloud is reached."""

from __future__ import annotations

import configparser
import copy
import functools
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import documented
import jsonschema
import psutil
import pytest
import yaml
from processes import ROOT, wait_until
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from remoterl.actors.directory import RESOURCE
from remoterl.cluster import node

FOLDER = ROOT / "cluster_configs"
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
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},  # since KubeRay 1.5
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
    config = prepare_config(copy.deepcopy(cluster_config(name)))
    validate_config(config)
    commands = " ".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    assert commands.count("RAY_AUTH_MODE=token") == 2 and "--autoscaling-config=~/ray_bootstrap_config.yaml" in commands
    assert "RAY_preload_python_modules=remoterl.actors.preload" in commands
    assert 'REMOTERL_REGISTER="$(cat ~/.remoterl-register)"' in commands
    assert "echo > ~/.remoterl-register" in config["setup_commands"]  # which is for every machine
    assert "--ray-client-server-port=10001" in commands
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_a_simulator_on_premises_takes_along_what_its_node_leaves(tmp_path: Path) -> None:
    """The start command with another `ray`, which leaves an agent behind, as Ray's does when the hub is gone."""
    ray = tmp_path / "ray"
    ray.write_text(
        '#!/bin/sh\n"$HOME/ray::DashboardAgent" 1000 &\nprintf "%s\\n" $! "$@" > "$HOME/told"\n'
        'mv "$HOME/told" "$HOME/said"\nsleep 1\n'
    )
    ray.chmod(0o755)
    shutil.copy(shutil.which("sleep") or "", tmp_path / "ray::DashboardAgent")
    (start,) = [line for line in cluster_config("on_premises")["worker_start_ray_commands"] if "ray start" in line]
    environ = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_HEAD_IP": "10.0.0.1"}
    (tmp_path / ".remoterl-register").touch()
    subprocess.run(["bash", "-c", start], env=environ, check=True, timeout=20)
    wait_until((tmp_path / "said").exists, 60)
    pid, *arguments = (tmp_path / "said").read_text().splitlines()
    assert arguments == [
        "start", "--block", "--address=10.0.0.1:6379", "--disable-usage-stats", "--num-cpus=0",
        '--resources={"env_runner": 8}', "--labels=pool=cpu",
    ]  # fmt: skip
    wait_until(lambda: not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == "zombie", 60)


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cloud_starts_simulators_when_they_are_asked_for(name: str) -> None:
    types = cluster_config(name)["available_node_types"]
    simulator, trainer = types["simulator"], types["gpu_trainer"]
    assert (
        simulator["resources"] == {"CPU": 0, RESOURCE: 8} and simulator["min_workers"] == 0 < simulator["max_workers"]
    )
    assert trainer["resources"]["GPU"] == 1 and trainer["min_workers"] == 0
    assert any(word in yaml.safe_dump(simulator) for word in ("spot", "preemptible", "Spot"))


@pytest.mark.parametrize("name", [*CLOUDS, "on_premises", "kuberay-cluster", "kuberay-job"])
def test_nodes_have_what_promises_rest_on(name: str) -> None:
    """A hub misses a silent machine within the minute; a simulator ends what environments started, and is not nice."""
    text = (FOLDER / f"{name}.yaml").read_text()
    hub = {**node.FORK_SAFE, **node.MISSED_WITHIN_A_MINUTE}
    simulator = {**node.NOT_NICE, **node.END_CHILDREN}
    for variable, value in {**hub, **simulator}.items():
        assert re.search(rf'{variable}(=|, value: "){value}\b', text), variable


@pytest.mark.parametrize("path", [*FOLDER.glob("*.yaml"), FOLDER / "Dockerfile", FOLDER / "remoterl-simulator.service"])
def test_what_to_change_is_marked(path: Path) -> None:
    assert path.read_text().startswith("# ") and "CHANGE" in path.read_text()
    # The user's environments stand in one place: in the Dockerfile, for containers.
    marks = [mark for mark in _marks(path.read_text()) if re.search("package|modules|environments", mark)]
    if path.stem.startswith(("compose", "kuberay")):
        assert marks == [] and re.search("environments .*Dockerfile", path.read_text())
    else:
        (mark,) = marks
        assert "their package" in mark and re.search("modules? .*register", mark)


def _marks(text: str) -> Iterator[str]:
    """Each CHANGE comment: from there to the end of the comment's lines, and what it is put beside."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if "CHANGE: " not in line:
            continue
        more = itertools.takewhile(lambda one: one.lstrip().startswith("#"), lines[number + 1 :])
        yield " ".join([line.partition("CHANGE: ")[2], *(one.strip(" #") for one in more if "CHANGE: " not in one)])


PATHS_OF_COMMANDS = [*FOLDER.glob("*.yaml"), FOLDER / "remoterl-simulator.service"]


@pytest.mark.parametrize("path", PATHS_OF_COMMANDS, ids=lambda path: path.name)
def test_commands_are_those_of_ray_and_remoterl(path: Path) -> None:
    """Parsed, each by whom it is for, and not run."""
    import ray.scripts.scripts

    found = [shlex.split(command, comments=True) for command in _commands(path)]
    for program, *arguments in found:
        if program == "remoterl":
            command, rest = documented.remoterl_command(arguments)
        else:
            name, *rest = arguments
            command = ray.scripts.scripts.cli.commands[name]
        command.make_context(program, rest)  # raises where an option or an argument is not one
        assert all((ROOT / word).exists() for word in arguments if word.startswith("cluster_configs/"))
    expected = {"kuberay-cluster": 0, "kuberay-job": 1, "compose": 2, "remoterl-simulator": 2}
    assert len(found) == expected.get(path.stem, 7), found


def _commands(path: Path) -> Iterator[str]:
    """What it says to run, in a comment of commands or in between backticks, and what it runs."""
    text = path.read_text()
    for comment, quoted in re.findall(r"^# +((?:ray|remoterl) .*)$|`(remoterl [^`]+)`", text, re.MULTILINE):
        yield comment or quoted
    yield from re.findall(r"^ExecStart=/opt/remoterl/bin/(.*)$", text, re.MULTILINE)
    for config in yaml.load_all(text, Strict) if path.suffix == ".yaml" else ():
        yield from (service["command"] for service in config.get("services", {}).values() if "command" in service)
        yield from [config["spec"]["entrypoint"]] if config.get("kind") == "RayJob" else []
        lines = [*config.get("head_start_ray_commands", ()), *config.get("worker_start_ray_commands", ())]
        for part in (part for line in lines for part in line.split(";")):
            if found := re.search(r"\bray (start|stop)[^>]*", part):
                yield found[0]


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
    assert variables["RAY_preload_python_modules"] == "remoterl.actors.preload"
    # The code by which the autoscaler beside the hub reads what the operator gives it; it validates, too.
    config = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "c", "namespace": "n"}, "spec": spec})
    validate_config(config)
    derived = config["available_node_types"]["simulator"]
    assert derived["resources"].pop("memory") > 0
    assert derived["resources"] == {"CPU": 0, RESOURCE: 8} and derived["labels"] == {"pool": "cpu"}
    assert (derived["min_workers"], derived["max_workers"]) == (0, 12)


def test_a_jobs_model_can_be_written() -> None:
    head = manifests("job")[-1]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["securityContext"] == {"fsGroup": 1000}  # ray's, in rayproject/ray; a volume is root's
    assert head["containers"][0]["volumeMounts"] == [{"name": "results", "mountPath": "/results"}]


@pytest.mark.parametrize("extras", ["", "sb3,rllib"])
def test_the_image_is_installed_from_a_source_that_is_not_its_own(tmp_path: Path, extras: str) -> None:
    """The RUN line, with pip told to build and to install nothing; Docker itself runs nowhere here."""
    source, copy_of_it = tmp_path / "of root", tmp_path / "copy"
    text = (FOLDER / "Dockerfile").read_text().replace("\\\n", "")
    for *names, target in (line.split()[1:] for line in text.splitlines() if line.startswith("COPY")):
        place = Path(f"{source}{target.removeprefix('/src').rstrip('/')}")
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            copy_here = functools.partial(shutil.copytree, dirs_exist_ok=True) if name == "remoterl" else shutil.copy
            copy_here(ROOT / name, place)
    (command,) = (line.removeprefix("RUN ") for line in text.splitlines() if line.startswith("RUN "))
    instead = f"'{sys.executable}' -m pip install --dry-run --no-deps --no-index --no-build-isolation"
    command = command.replace("/tmp/src", str(copy_of_it)).replace(" /src ", f" '{source}' ")
    assert command.count("pip install ") == 1
    before = sorted(source.rglob("*"))
    done = subprocess.run(
        ["sh", "-ec", command.replace("pip install", instead)],
        env={**os.environ, "EXTRAS": extras},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Would install remoterl" in done.stdout
    assert sorted(source.rglob("*")) == before and not copy_of_it.exists()


def test_hadolint_takes_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    checked = subprocess.run([hadolint, FOLDER / "Dockerfile"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_compose() -> None:
    services = cluster_config("compose")["services"]
    assert set(services) == {"hub", "simulator", "trainer"}
    for service in services.values():
        assert "choose a key" in service["environment"]["REMOTERL_API_KEY"]
    words = [service["command"].split() for service in services.values() if "command" in service]
    assert [command[1] for command in words] == ["hub", "simulate"]


def test_docker_takes_the_compose_file(tmp_path: Path) -> None:
    docker, standalone = shutil.which("docker"), shutil.which("docker-compose")
    text = (FOLDER / "compose.yaml").read_text()
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0:
        command = [docker, "compose"]
    elif standalone:
        command = [standalone]
        version = subprocess.run([standalone, "version", "--short"], capture_output=True, text=True).stdout
        if version.startswith("1."):  # Debian's; it knows everything in the file but this
            text = text.replace("name: remoterl\n", "")
    else:
        pytest.skip("docker compose is not on this machine (Debian and Ubuntu: docker-compose)")
    (tmp_path / "compose.yaml").write_text(text)
    checked, without_key = (
        subprocess.run(
            [*command, "-f", str(tmp_path / "compose.yaml"), "config", "--quiet"],
            env={"PATH": os.environ["PATH"], **key},
            capture_output=True,
            text=True,
        )
        for key in ({"REMOTERL_API_KEY": "a-key"}, {})
    )
    assert checked.returncode == 0, checked.stderr
    assert without_key.returncode != 0 and "choose a key" in without_key.stderr


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
