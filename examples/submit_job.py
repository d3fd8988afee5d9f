"""Run a trainer inside the cluster, as a Ray job: what `ray job submit` does, with the hub's dashboard address.

`python submit_job.py http://HUB:8265 train.py --output /srv/results` sends the folder of the script along, starts it at
the hub with its arguments, and shows what it prints until it ends. The shell's way to the same:
`ray job submit --address http://HUB:8265 --working-dir . -- python train.py --output /srv/results`, with the key in
RAY_AUTH_TOKEN and RAY_AUTH_MODE=token. Here it is REMOTERL_API_KEY, or what `remoterl register` keeps for this hub.

The hub's dashboard listens where `remoterl hub --dashboard-host` says; by default on its own machine alone, which
`ssh -L 8265:localhost:8265 HUB` brings here as http://localhost:8265 (then with REMOTERL_API_KEY).

Ray removes a job's own folder some time after its end. What is to stay, a script saves under an absolute path, which is
the hub's, and it is fetched from there: `ray rsync-down CLUSTER.yaml /srv/results .` after `ray up`, else `scp`; or it
goes to a bucket or a shared disk at once.
"""

import argparse
import asyncio
import shlex
import sys
from pathlib import Path
from urllib.parse import urlsplit

from ray.job_submission import JobStatus, JobSubmissionClient

from remoterl.config import find_api_key, parse_address


async def show(client: JobSubmissionClient, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="the hub's dashboard, http://HUB:8265")
    parser.add_argument("script", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own")
    args = parser.parse_args()
    script = args.script.resolve()
    key = find_api_key(None, address=parse_address(f"ray://{urlsplit(args.address).hostname}", "the address"))
    client = JobSubmissionClient(args.address, headers={"Authorization": f"Bearer {key}"} if key else None)
    # In the job, Ray says by itself where the cluster is and what its key is.
    entrypoint = shlex.join(["python", script.name, *args.arguments])
    job = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(script.parent)})
    asyncio.run(show(client, job))
    status = client.get_job_status(job)
    print(status)
    sys.exit(status is not JobStatus.SUCCEEDED)
