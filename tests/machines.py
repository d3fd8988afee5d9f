"""Machines for the tests: network, process and mount namespaces of this one, each with its own sshd. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from processes import KEY, ROOT, wait_until

TOOLS = ("ip", "unshare", "nsenter", "sshd", "ssh", "ssh-keygen", "rsync")


def why_not() -> str:
    """What is missing on this machine; empty where nothing is."""
    if os.geteuid() != 0:
        return "needs root"
    if missing := [tool for tool in TOOLS if shutil.which(tool, path=_PATH) is None]:
        return f"needs {', '.join(missing)} (openssh-server, rsync, iproute2)"
    tried = subprocess.run(
        ["unshare", "--net", "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"], capture_output=True
    )
    return "this kernel gives no veth pairs to root here" if tried.returncode else ""


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Network:
    """A trainer's network that routes between hosts, each at `10.77.N.2` behind it. A context manager."""

    def __init__(self, python: Path, hosts: int) -> None:
        self._python = python
        self.folder = Path(tempfile.mkdtemp(prefix="net-", dir="/tmp"))
        self.hosts = [f"10.77.{number}.2" for number in range(1, hosts + 1)]
        self.key = self.folder / "id"
        self.home = self.folder / "home"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Network:
        token = self.home / ".ray" / "auth_token"
        token.parent.mkdir(parents=True)
        token.write_text(KEY)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        self._processes.append(subprocess.Popen(["unshare", "--net", "sleep", "infinity"]))
        wait_until(lambda: self._in_own_network(self._processes[0].pid), 10)
        self.run("sh", "-c", "ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward")
        for number in range(1, len(self.hosts) + 1):
            self._add_host(number)
        for host in self.hosts:
            wait_until(lambda host=host: self.on(host, "true", check=False).returncode == 0, 30, f"sshd of {host}")
        return self

    def __exit__(self, *_: Any) -> None:
        for process in reversed(self._processes):  # each is the first process of its namespace, which ends with it
            for child in psutil.Process(process.pid).children():
                child.kill()
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(
        self, *command: str, variables: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the trainer's machine, with these environment variables besides."""
        environ = {name: value for name, value in os.environ.items() if "RAY" not in name and "REMOTERL" not in name}
        environ |= {
            "HOME": str(self.home), "RAY_TMPDIR": str(self.folder), "PATH": f"{self._python.parent}:{_PATH}",
            "RAY_AUTH_MODE": "token", **(variables or {}),
        }  # fmt: skip
        options = {"check": True, "capture_output": True, "text": True, "timeout": 240, "env": environ, **options}
        network = f"--net=/proc/{self._processes[0].pid}/ns/net"
        return subprocess.run(["nsenter", network, *command], **options)

    def on(self, host: str, command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on a host, by SSH."""
        quiet = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")
        return self.run("ssh", "-i", str(self.key), *quiet, f"root@{host}", command, **options)

    def processes(self, name: str) -> list[str]:
        """Command lines on the hosts that hold this word, asked of the operating system."""
        found = []
        for process in self._processes[1:]:
            for one in psutil.Process(process.pid).children(recursive=True):
                try:
                    line = " ".join(one.cmdline())
                except psutil.NoSuchProcess:
                    continue
                if name in line:
                    found.append(line)
        return found

    def _add_host(self, number: int) -> None:
        folder = self.folder / f"host{number}"
        (folder / "home").mkdir(parents=True)
        (folder / "tmp").mkdir()
        (folder / "home" / ".bashrc").touch()
        (folder / "passwd").write_text("root:x:0:0:root:/host/home:/bin/bash\nsshd:x:105:65534::/run/sshd:/bin/false\n")
        (folder / "profile").write_text(f"export PATH={self._python.parent}:{_PATH}\n")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "hostkey")], check=True)
        # Below /root or wherever it may lie, the folder is reached before /tmp becomes the host's own.
        (folder / "sshd_config").write_text(
            "Port 22\nPermitRootLogin yes\nStrictModes no\nUsePAM no\nPidFile none\n"
            f"HostKey /host/hostkey\nAuthorizedKeysFile /host/authorized_keys\n"
            f"SetEnv PATH={self._python.parent}:{_PATH}\n"
        )
        shutil.copy(self.key.with_suffix(".pub"), folder / "authorized_keys")
        kept = ""
        if ROOT.is_relative_to("/tmp"):  # a checkout that the host's own /tmp would hide
            place = folder / "tmp" / ROOT.relative_to("/tmp")
            place.mkdir(parents=True)
            kept = f"mount --bind {ROOT} {place}; "
        script = (
            f"mkdir -p /run/sshd /host; {kept}"
            f"mount --rbind {folder} /host; mount --bind /host/profile /etc/profile; mount --rbind /host/tmp /tmp; "
            "mount --bind /host/passwd /etc/passwd; "  # ssh reads there where the user's home is
            "ip link set lo up; "
            "until ip link show eth0 >/dev/null 2>&1; do sleep 0.1; done; "
            f"ip addr add 10.77.{number}.2/24 dev eth0; ip link set eth0 up; "
            f"ip route add default via 10.77.{number}.1; "
            f"hostname host{number}; exec $(command -v sshd) -D -e -f /host/sshd_config"
        )
        process = subprocess.Popen(
            [
                "unshare",
                "--net",
                "--uts",
                "--mount",
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child",
                "sh",
                "-c",
                script,
            ],
            env={**os.environ, "PATH": _PATH},
            stdin=subprocess.DEVNULL,
            stderr=open(self.folder / f"sshd{number}.log", "wb"),  # noqa: SIM115 - the child's
            cwd=ROOT,
        )
        self._processes.append(process)
        wait_until(lambda: self._in_own_network(process.pid), 10)
        self.run("ip", "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
        self.run("sh", "-c", f"ip addr add 10.77.{number}.1/24 dev v{number}; ip link set v{number} up")

    def _in_own_network(self, pid: int) -> bool:
        return os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
