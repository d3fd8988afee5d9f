"""All tests, as two pytest processes at the same time: `make test`. Arguments are both processes' own.

What the second's tests print appears when the others have ended. It has a network of its own: two hubs of Ray on one
may give out the same port at one moment. Where such a network can't be made (it takes root, on Linux), one process runs
all tests.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machines
from processes import ROOT
from ray.util import get_node_ip_address

# Those that need RLlib's cluster, and many that make their own: a cluster that nobody uses costs a tenth of a core, so
# each process has one for most of its time.
BESIDE = [
    "tests/faults",
    "tests/integration/test_ray_up.py",
    "tests/integration/test_autoscaling.py",
    "tests/integration/test_hub.py",
    *(f"tests/integration/test_rllib_{name}.py" for name in ("ends", "placement", "examples", "tune", "chosen")),
    "tests/integration/test_examples.py::test_pong_learns_as_in_sub_processes",
    "tests/integration/test_train.py::test_rllib_where_only_simulators_have_the_environment",
    "tests/integration/test_train.py::test_ctrl_c_for_rllib_in_a_private_cluster",
]
OWN_NETWORK = """
ip link set lo up
ip link add eth0 type veth peer name eth1
ip addr add {address}/32 dev eth0
ip link set eth0 up
ip link set eth1 up
ip route add default dev eth0
exec "$@"
"""
OFFLINE_ADDRESS = "10.77.255.2"
NONE_CHOSEN = 5  # pytest's exit code where arguments such as -k leave no test


def main(arguments: list[str]) -> int:
    """Run both; 0 if every test passed. Ctrl-C or SIGTERM ends both, in order."""
    pytest = [sys.executable, "-m", "pytest", *arguments]
    if missing := machines.why_not():
        print(f"One process runs all tests: {missing}.", flush=True)
        return subprocess.run(pytest, cwd=ROOT, check=False).returncode
    began = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    # By which Ray knows this machine, and to which its name may lead; so it is in the other network too.
    address = get_node_ip_address()
    address = OFFLINE_ADDRESS if address == "127.0.0.1" else address
    network = ["unshare", "--net", "sh", "-ec", OWN_NETWORK.format(address=address), "sh"]
    log = Path(tempfile.mkstemp(suffix=".log")[1])
    with log.open("wb") as output:
        # Sessions of their own: what a terminal's Ctrl-C does to them, this process does, once.
        beside = subprocess.Popen(
            [*network, *pytest, "-o", "cache_dir=.pytest_cache/beside", *BESIDE],
            cwd=ROOT, env={**os.environ, "PATH": machines.PATH}, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    left_out = [f"--{'deselect' if '::' in one else 'ignore'}={one}" for one in BESIDE]
    others = subprocess.Popen([*pytest, *left_out], cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        others.wait()
        print("\nThe tests beside these:", flush=True)
        follow(log, beside)
    except KeyboardInterrupt:
        print("\nInterrupted: both end what they started.", flush=True)
        for process in (beside, others):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        others.wait()
        follow(log, beside)
    finally:
        log.unlink()
    print(
        f"Both took {time.monotonic() - began:.0f} s; exit codes {others.returncode}, and {beside.returncode} beside."
    )
    codes = {beside.returncode, others.returncode}
    return 0 if codes == {0, NONE_CHOSEN} else max(map(abs, codes))


def follow(log: Path, process: subprocess.Popen[bytes]) -> None:
    """Print what is in a file, and what the process adds to it until it ends."""
    with log.open("rb") as text:
        while True:
            ended = process.poll() is not None  # asked first, so that the last words are not missed
            sys.stdout.buffer.write(text.read())
            sys.stdout.buffer.flush()
            if ended:
                return
            time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
