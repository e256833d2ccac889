"""The training process as its parent sees it: start it, follow its metrics, turn its exit status into an error.
Takes a spec file and the number of steps; the process leaves its results beside the spec.
It does not know stages, artifacts or how anything is trained, and does not import torch.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from qalam_core.errors import TrainingError
from qalam_core.progress import Progress
from qalam_core.training.spec import DISK_FAILED, STOPPED, USER_ERROR

__all__ = ["follow"]

log = logging.getLogger(__name__)


def follow(spec: Path, steps: int, progress: Progress) -> None:
    """Run `python -m qalam_core.training SPEC` to its end. Raises TrainingError, and OSError when the disk failed."""
    # a file, not a pipe: a pipe that nobody reads meanwhile would block a training with many warnings
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stderr_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "qalam_core.training", str(spec)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr_file, text=True,
            close_fds=False,  # it inherits the artifact's lock (see Store.locked); its stdin closes when we die
        )  # fmt: skip
        assert process.stdout and process.stdin
        done = 0
        try:
            for line in process.stdout:
                metrics = json.loads(line)
                done = metrics.pop("step")
                progress(done, steps)
                if "dtype" in metrics:
                    log.info("training on %s in %s, compile %s", *(metrics[k] for k in ("device", "dtype", "compile")))
                if metrics.keys() & {"loss", "validation_loss"}:
                    log.info("step %d of %d: %s", done, steps, ", ".join(f"{k} {v:.6g}" for k, v in metrics.items()))
            status = process.wait()
        except BaseException:
            process.terminate()  # it writes a checkpoint and exits within a step
            process.communicate()
            raise
        finally:
            for pipe in (process.stdin, process.stdout):
                pipe.close()
        stderr_file.seek(0)
        errors = stderr_file.read().strip()
    if status == USER_ERROR:
        raise TrainingError(errors.splitlines()[-1])  # warnings may precede it
    if status == DISK_FAILED:
        number = int(errors.splitlines()[-1].partition(" ")[0])
        raise OSError(number, os.strerror(number))  # the store reports it
    if status == STOPPED:
        raise TrainingError(f"training was stopped at step {done} of {steps}; run the same command again to go on")
    if status == -9:
        raise TrainingError(
            f"training was killed at step {done}, most likely for memory; raise train.accumulate, "
            "or run the same command again to go on from the last checkpoint"
        )
    if status:
        raise RuntimeError(f"qalam_core.training ended with status {status}:\n{errors}")
