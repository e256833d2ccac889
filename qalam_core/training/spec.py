"""The specification of a training run, which the training process reads, and its exit statuses; without torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from qalam_core.errors import TrainingError
from qalam_core.package.runtime.architecture import ModelConfig
from qalam_core.recipe import Continuing, Frozen, Model, Monitoring, Optimisation

WEIGHTS, STATE, METRICS, RESULT = "model.safetensors", "state.safetensors", "metrics.jsonl", "result.json"
"""The files that training leaves in its folder; the result is written last.

The state is that from which a later training continues: weights and optimizer state, as in checkpoints.
"""

CHECKPOINTS = "checkpoint-*.safetensors"
"""Files from which training continues, and which it deletes in the end."""

USER_ERROR = 2  # the last line of standard error is the message
DISK_FAILED = 74  # EX_IOERR; the last line of standard error begins with the errno
STOPPED = 75  # EX_TEMPFAIL, by a signal; the checkpoint is written, and the same command resumes from it
PEER_LOST = 76  # another process of the group exited; not a fault of this one


def model_config(model: Model, vocab_size: int) -> ModelConfig:
    """The configuration of a recipe's model with so many words; dropout is a setting of training alone."""
    shared = {name: getattr(model, name) for name in ("dim", "num_heads", "num_layers", "max_seq_len", "tied")}
    if model.block == "original":
        return ModelConfig(vocab_size, **shared)
    return ModelConfig(
        vocab_size, **shared, block=model.block, num_kv_heads=model.num_kv_heads or model.num_heads,
        head_dim=model.head_dim or model.dim // model.num_heads,
        hidden_dim=model.hidden_dim or max(1, round(model.dim / 12)) * 32,
        rope_base=model.rope_base, norm_epsilon=model.norm_epsilon, qk_norm=model.qk_norm,
    )  # fmt: skip


class TrainSettings(Frozen):
    """Everything that the weights depend on, besides the tokens and the initial weights."""

    seed: int
    model: Model
    vocab_size: int
    optimisation: Optimisation
    validate_every: int | None  # decides when training stops early; None without train.patience
    continuing: Continuing | None = None
    weights: dict[str, float] = Field({})  # of sources, by name, where it is not 1


class Spec(Frozen):
    """The input of `python -m qalam_core.training`; paths are absolute."""

    settings: TrainSettings
    monitoring: Monitoring
    tokens: tuple[str, ...]
    validation: tuple[str, ...]
    out: str
    copies: str = ""  # COPIES of the prepared corpus, where train.copies weighs documents by them
    elsewhere: str = ""  # a folder with a checkpoint of another machine, to continue where there is none in `out`
    initial: str = ""  # a safetensors file of initial weights, or of a STATE; random weights when empty

    @property
    def validate_every(self) -> int:
        """Steps between two validation passes."""
        return self.settings.validate_every or self.monitoring.validate_every

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_bytes(self.to_json())

    @classmethod
    def load(cls, path: Path) -> Spec:
        """Read what `save` wrote. Raises TrainingError."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            raise TrainingError(f"{path}: not the specification of a training run; `qalam build` writes one") from None
