"""The parent of a training process: starts it, follows its metrics, turns its exit status into an error."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from qalam_core.errors import TrainingError
from qalam_core.progress import Progress
from qalam_core.training.spec import DISK_FAILED, STOPPED, USER_ERROR

log = logging.getLogger(__name__)


def follow(spec: Path, steps: int, progress: Progress) -> None:
    """Run `python -m qalam_core.training SPEC` to its end. Raises TrainingError, and OSError when the disk failed."""
    # a file, not a pipe: it is read only at the end, and a full pipe would block a training with many warnings
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stderr_file:
        with subprocess.Popen(
            [sys.executable, "-m", "qalam_core.training", str(spec)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr_file, text=True,
            close_fds=False,  # it inherits the artifact's lock (see Store.locked); its stdin closes when we exit
        ) as process:  # fmt: skip
            done = 0
            try:
                for line in process.stdout or ():
                    metrics = json.loads(line)
                    done = metrics.pop("step")
                    progress(done, steps, _note(metrics))
                    if "dtype" in metrics:
                        numerics = (metrics[key] for key in ("device", "dtype", "compile"))
                        log.info("training on %s in %s, compile %s", *numerics)
                    if note := metrics.get("note"):
                        log.warning("%s", note)
                    if metrics.keys() & {"learning_rate", "validation_loss"}:  # lines of metrics.jsonl
                        values = ", ".join(f"{key} {value:.6g}" for key, value in metrics.items())
                        log.info("step %d of %d: %s", done, steps, values)
                status = process.wait()
            except BaseException:
                process.terminate()  # it writes a checkpoint and exits within a step
                process.communicate()
                raise
        stderr_file.seek(0)
        errors = stderr_file.read().strip()
    if status == USER_ERROR:
        raise TrainingError(errors.splitlines()[-1])  # warnings may precede it
    if status == DISK_FAILED:
        number = int(errors.splitlines()[-1].partition(" ")[0])
        raise OSError(number, os.strerror(number))  # the store reports it
    if status == STOPPED:
        raise TrainingError(f"training was stopped at step {done} of {steps}; run the same command again to resume")
    if status == -9:
        raise TrainingError(
            f"training was killed at step {done}, most likely for memory; raise train.accumulate, or run the same "
            "command again to resume from the last checkpoint"
        )
    if status:
        raise RuntimeError(f"qalam_core.training exited with status {status}:\n{errors}")


def _note(metrics: Mapping[str, float]) -> str:
    """The figures of a line that are shown while training runs."""
    if "loss" not in metrics:
        return ""
    return f"loss {metrics['loss']:.4g}, {metrics['tokens_per_second']:,.0f} tokens/s"
