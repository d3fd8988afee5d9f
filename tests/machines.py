"""Machines for the tests: network, process and mount namespaces of this one, behind a router. Needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
from processes import KEY, ROOT, Process, wait_until

TOOLS = ("ip", "unshare", "nsenter")
SSH_TOOLS = ("sshd", "ssh", "ssh-keygen", "rsync")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def why_not(*more_tools: str) -> str:
    """What is missing on this machine; empty where nothing is."""
    if os.geteuid() != 0:
        return "needs root"
    if missing := [tool for tool in (*TOOLS, *more_tools) if shutil.which(tool, path=PATH) is None]:
        return f"needs {', '.join(missing)} (openssh-server, rsync, iproute2)"
    tried = subprocess.run(
        ["unshare", "--net", "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"], capture_output=True
    )
    return "this kernel gives no veth pairs to root here" if tried.returncode else ""


Self = TypeVar("Self", bound="Network")


class Network:
    """Hosts, each at `10.77.N.2`, and a router between them. A context manager.

    Each host has a network, a name, processes and a /tmp of its own; the rest of the disk is this machine's.

    Args:
        hosts: how many.
        wired: addresses of hosts that hang on a wire whose delay and loss can be set; see `disturb`.
    """

    def __init__(self, hosts: int, wired: Sequence[str] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="net-", dir="/tmp"))
        self.hosts = [f"10.77.{number}.2" for number in range(1, hosts + 1)]
        self._wired = wired
        self._wires: dict[str, subprocess.Popen[bytes]] = {}
        self._spaces: list[subprocess.Popen[bytes]] = []  # the router's, then the hosts'

    def __enter__(self: Self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        for wire in self._wires.values():
            wire.kill()
            wire.wait()
        for space in reversed(self._spaces):  # each is the first process of its namespace, which ends with it
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(space.pid).children():
                    child.kill()
            space.kill()
            space.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def on_router(self, script: str) -> None:
        """Run a shell's commands on the router."""
        subprocess.run(
            ["nsenter", f"--net=/proc/{self._spaces[0].pid}/ns/net", "sh", "-ec", script],
            env={**os.environ, "PATH": PATH},
            check=True,
            timeout=20,
        )

    def start(self, host: str, *command: str, cwd: str | Path = "/tmp", **environment: str) -> HostProcess:
        """Start a process on a host; `environment` is added to the tests' clean one."""
        enter = ["nsenter", "--target", str(self._first(host)), "--net", "--uts", "--mount", "--pid"]
        return HostProcess(*enter, "env", "-C", str(cwd), *command, HOME="/tmp", **environment)

    def processes(self, host: str) -> list[psutil.Process]:
        """What runs on a host, asked of the operating system; without the process that keeps the host up."""
        first = self._first(host)
        space = os.readlink(f"/proc/{first}/ns/pid")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):  # it ended while we looked
                here = os.readlink(f"/proc/{process.pid}/ns/pid") == space and process.pid != first
                if here and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def cut(self, host: str) -> None:
        """Lose every packet from and to a host, without a word to anybody."""
        number = self._number(host)
        self.on_router(f"ip route add blackhole {host}; echo 0 > /proc/sys/net/ipv4/conf/v{number}/forwarding")

    def mend(self, host: str) -> None:
        """Undo `cut`."""
        number = self._number(host)
        self.on_router(f"ip route del blackhole {host}; echo 1 > /proc/sys/net/ipv4/conf/v{number}/forwarding")

    def disturb(self, host: str, delay_s: float, loss: float) -> None:
        """Delay packets of a `wired` host by so much in each direction, and lose this share of them."""
        pipe = self._wires[host].stdin
        assert pipe is not None
        pipe.write(f"{delay_s} {loss}\n".encode())
        pipe.flush()

    def _first(self, host: str) -> int:
        """Pid of a host's first process."""
        (child,) = psutil.Process(self._spaces[self._number(host)].pid).children()
        return child.pid

    def _number(self, host: str) -> int:
        return self.hosts.index(host) + 1

    # ---- setting up ------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        self._spaces.append(subprocess.Popen(["unshare", "--net", "sleep", "infinity"]))
        wait_until(lambda: _in_own_network(self._spaces[0].pid))
        self.on_router("ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward")
        for number in range(1, len(self.hosts) + 1):
            self._add_host(number)

    def _add_host(self, number: int) -> None:
        folder = self.folder / f"host{number}"
        (folder / "tmp").mkdir(parents=True)
        kept = ""
        if ROOT.is_relative_to("/tmp"):  # a checkout that the host's own /tmp would hide
            place = folder / "tmp" / ROOT.relative_to("/tmp")
            place.mkdir(parents=True)
            kept = f"mount --bind {ROOT} {place}; "
        script = (
            f"{kept}{self._mounts(folder)}"
            "ip link set lo up; "
            "until ip link show eth0 >/dev/null 2>&1; do sleep 0.1; done; "
            f"ip addr add 10.77.{number}.2/24 dev eth0; ip link set eth0 up; "
            f"ip route add default via 10.77.{number}.1; hostname host{number}; {self._first_command()}"
        )
        spaces = ("--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
        with open(folder / "first.log", "wb") as log:
            process = subprocess.Popen(
                ["unshare", *spaces, "sh", "-c", script],
                env={**os.environ, "PATH": PATH},
                stdin=subprocess.DEVNULL,
                stderr=log,
                cwd=ROOT,
            )
        self._spaces.append(process)
        wait_until(lambda: _in_own_network(process.pid))
        self._connect(number, process.pid)

    def _connect(self, number: int, pid: int) -> None:
        host, end = self.hosts[number - 1], f"v{number}"
        to_router = f"ip addr add 10.77.{number}.1/24 dev {end}; ip link set {end} up"
        if host not in self._wired:
            self.on_router(f"ip link add {end} type veth peer name eth0 netns {pid}; {to_router}")
            return
        command = ["unshare", "--net", sys.executable, str(ROOT / "tests" / "wire.py"), "near", "far"]
        wire = self._wires[host] = subprocess.Popen(command, env={**os.environ, "PATH": PATH}, stdin=subprocess.PIPE)
        wait_until(lambda: _in_own_network(wire.pid))
        self.on_router(
            f"ip link add t{number} type veth peer name eth0 netns {pid}; "
            f"ip link set t{number} netns {wire.pid} name far; "
            f"ip link add {end} type veth peer name near netns {wire.pid}; {to_router}"
        )

    def _mounts(self, folder: Path) -> str:
        return f"mount --rbind {folder}/tmp /tmp; "

    def _first_command(self) -> str:
        return "trap '' CHLD; exec sleep infinity"  # nobody's children are its own, and leave no zombies


class HostProcess(Process):
    """A process on a host. `pid` is this machine's; there it has another."""

    @property
    def pid(self) -> int:
        (child,) = psutil.Process(self.process.pid).children()
        return child.pid

    def end(self, number: int = signal.SIGINT, timeout_s: float = 30.0) -> int:
        """Signal it, wait for its end, and return its exit code."""
        if self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess, ValueError):  # it ends just now
                os.kill(self.pid, number)
        return super().end(0, timeout_s)


class SshNetwork(Network):
    """A network whose router is the trainer's machine, and whose hosts have an sshd each."""

    def __init__(self, python: Path, hosts: int) -> None:
        super().__init__(hosts)
        self._python = python
        self.key = self.folder / "id"
        self.home = self.folder / "home"

    def run(
        self, *command: str, variables: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the trainer's machine, with these environment variables besides."""
        environ = {name: value for name, value in os.environ.items() if "RAY" not in name and "REMOTERL" not in name}
        environ |= {
            "HOME": str(self.home), "RAY_TMPDIR": str(self.folder), "PATH": f"{self._python.parent}:{PATH}",
            "RAY_AUTH_MODE": "token", **(variables or {}),
        }  # fmt: skip
        options = {"check": True, "capture_output": True, "text": True, "timeout": 240, "env": environ, **options}
        network = f"--net=/proc/{self._spaces[0].pid}/ns/net"
        return subprocess.run(["nsenter", network, *command], **options)

    def on(self, host: str, command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on a host, by SSH."""
        quiet = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")
        return self.run("ssh", "-i", str(self.key), *quiet, f"root@{host}", command, **options)

    def lines(self, word: str) -> list[str]:
        """Command lines on the hosts that hold this word, asked of the operating system."""
        found = []
        for host in self.hosts:
            for process in self.processes(host):
                with contextlib.suppress(psutil.NoSuchProcess):
                    found.append(" ".join(process.cmdline()))
        return [line for line in found if word in line]

    def _set_up(self) -> None:
        token = self.home / ".ray" / "auth_token"
        token.parent.mkdir(parents=True)
        token.write_text(KEY)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        super()._set_up()
        for host in self.hosts:
            wait_until(lambda host=host: self.on(host, "true", check=False).returncode == 0, what=f"sshd of {host}")

    def _mounts(self, folder: Path) -> str:
        (folder / "home").mkdir()
        (folder / "home" / ".bashrc").touch()
        (folder / "passwd").write_text("root:x:0:0:root:/host/home:/bin/bash\nsshd:x:105:65534::/run/sshd:/bin/false\n")
        (folder / "profile").write_text(f"export PATH={self._python.parent}:{PATH}\n")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "hostkey")], check=True)
        (folder / "sshd_config").write_text(
            "Port 22\nPermitRootLogin yes\nStrictModes no\nUsePAM no\nPidFile none\n"
            "HostKey /host/hostkey\nAuthorizedKeysFile /host/authorized_keys\n"
            f"SetEnv PATH={self._python.parent}:{PATH}\n"
        )
        shutil.copy(self.key.with_suffix(".pub"), folder / "authorized_keys")
        # Below /root or wherever it may lie, the folder is reached before /tmp becomes the host's own.
        return (
            f"mkdir -p /run/sshd /host; mount --rbind {folder} /host; mount --bind /host/profile /etc/profile; "
            "mount --rbind /host/tmp /tmp; "
            "mount --bind /host/passwd /etc/passwd; "  # ssh reads there where the user's home is
        )

    def _first_command(self) -> str:
        return "exec $(command -v sshd) -D -e -f /host/sshd_config"


def _in_own_network(pid: int) -> bool:
    return os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
