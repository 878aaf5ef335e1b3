"""Code in a process of its own, whose memory is limited and measured."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
_WRAPPED = """
import json, resource, re
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))

def peak():  # of this process alone: getrusage counts what it was forked from
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024

{setup}
before = peak()
{code}
print(json.dumps([result, before, peak()]))
"""


def measured(setup: str, code: str, *, limit_gib: float = 8.0) -> tuple[object, float, float]:
    """Runs `setup`, then `code`, which sets `result`, under a limit of address space.

    Returns `result`, and the peaks of resident memory after the setup and at the end, in MiB.
    """
    script = _WRAPPED.format(limit=int(limit_gib * 2**30), setup=setup, code=code)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result, before, after = json.loads(done.stdout.splitlines()[-1])
    return result, before, after
