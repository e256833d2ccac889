"""`python -m qalam_core.training SPEC`: trains in this process, or in several that it starts.
Writes each metrics line to standard output. spec.py has the exit statuses.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from qalam_core.errors import QalamError
from qalam_core.files import DISK_ERRORS
from qalam_core.training.distributed import Stop, World, exit_process, is_peer_loss, launch, report_error
from qalam_core.training.hardware import choose_device
from qalam_core.training.loop import run
from qalam_core.training.spec import DISK_FAILED, PEER_LOST, STOPPED, USER_ERROR, Spec


def main() -> int:
    """Run the specification in the first argument; -> exit status."""
    # cuBLAS reads it when it creates its first handle; deterministic mode requires it
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        spec = Spec.load(Path(sys.argv[1]))
        settings = spec.settings.optimisation
        if settings.processes > 1 and "WORLD_SIZE" not in os.environ:
            return launch(["-m", "qalam_core.training", sys.argv[1]], settings.processes, STOPPED)
        stop, device = Stop(), choose_device(settings.device)
        world = World.join(settings.processes, device.type)
        return run(spec, stop, world, device)
    except QalamError as error:
        return _user_error(str(error))
    except torch.OutOfMemoryError:
        return _user_error("the GPU has too little memory for this batch; raise train.accumulate")
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        sys.stderr.write(f"{error.errno} {error.strerror}: {error.filename}\n")
        return DISK_FAILED
    except Exception as error:
        if "WORLD_SIZE" in os.environ and is_peer_loss(error):
            return PEER_LOST
        raise


def _user_error(line: str) -> int:
    report_error(line)
    sys.stderr.write(f"{line}\n")
    return USER_ERROR


if __name__ == "__main__":
    exit_process(main())
