"""The lm-evaluation-harness adapter: against plain arithmetic, and through the harness with a local task, offline."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qalam_core.errors import PackageError
from qalam_core.package import read
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from tests.small_package import CONFIG, export

pytest.importorskip("lm_eval", reason='the extra "lmeval" is not installed')
pytestmark = [pytest.mark.filterwarnings("ignore")]  # the harness's and its libraries' own


TASK = """task: arabic_pairs
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: "{{{{[good, bad]}}}}"
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("lmeval") / "model")


def test_likelihoods_are_the_models(package: Path) -> None:
    from lm_eval.api.instance import Instance

    from qalam_core.evaluation.harness import QalamLM

    ours = QalamLM(path=str(package))
    model = NumpyTransformer(read(package).config, read(package).weights)

    def logs(ids: list[int]) -> np.ndarray:
        values = model(np.array([ids]))[0][0].astype(np.float64)
        return values - np.log(np.exp(values).sum(-1, keepdims=True))

    cat, eats, fish = 4, 5, 6
    asked = Instance("loglikelihood", {}, ("القط", " يأكل السمك"), 0)
    ((found, greedy),) = ours.loglikelihood([asked])
    table = logs([2, cat, eats])
    assert found == pytest.approx(table[1, eats] + table[2, fish], rel=1e-5)
    assert greedy == bool(table[1].argmax() == eats and table[2].argmax() == fish)
    rolled = Instance("loglikelihood_rolling", {}, ("القط يأكل السمك",), 0)
    table = logs([2, cat, eats, fish])
    expected = table[0, cat] + table[1, eats] + table[2, fish] + table[3, 3]
    assert ours.loglikelihood_rolling([rolled])[0] == pytest.approx(expected, rel=1e-5)
    # longer than the context, each token is still scored once
    long = " ".join(["القط يأكل السمك"] * CONFIG.max_seq_len)
    total = ours.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (long,), 0)])[0]
    assert math.isfinite(total)
    assert -total / (3 * CONFIG.max_seq_len + 1) == pytest.approx(math.log(CONFIG.vocab_size), rel=0.6)
    text = ours.generate_until([Instance("generate_until", {}, ("القط", {"until": ["السمك"], "max_gen_toks": 5}), 0)])[
        0
    ]
    assert "السمك" not in text


@pytest.mark.parametrize(
    ("arguments", "generation", "message"),
    [
        ({"path": ""}, {}, "name the package"),
        ({"max_gen_tok": 5}, {}, "--model_args max_gen_tok: there are path and max_gen_toks"),
        ({"max_gen_toks": "x"}, {}, "max_gen_toks=x: give a number"),
        ({}, {"do_sample": True, "temperature": 0.5}, "do_sample: texts are greedy"),
        ({}, {"temperature": 0.5}, "do_sample: texts are greedy"),
        ({}, {"num_beams": 4}, "num_beams: texts are greedy"),
    ],
)
def test_what_would_change_the_result_is_refused(
    package: Path, arguments: dict[str, Any], generation: dict[str, Any], message: str
) -> None:
    from lm_eval.api.instance import Instance

    from qalam_core.evaluation.harness import QalamLM

    with pytest.raises(PackageError, match=message):
        QalamLM(**{"path": str(package), "batch_size": 1, **arguments}).generate_until(
            [Instance("generate_until", {}, ("القط", generation), 0)]
        )


def test_a_length_has_several_names(package: Path) -> None:
    from lm_eval.api.instance import Instance

    from qalam_core.evaluation.harness import QalamLM

    ours = QalamLM(path=str(package), max_gen_toks=5)
    given: list[dict[str, Any]] = [
        {"max_new_tokens": 2, "num_beams": 1, "do_sample": False, "temperature": 0.0},
        {"max_gen_toks": 2}, {"until": None},
    ]  # fmt: skip
    short, same, long = ours.generate_until([Instance("generate_until", {}, ("القط", one), 0) for one in given])
    assert short == same
    assert len(long) > len(short)


@pytest.mark.usefixtures("processes")
def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "pairs.yaml").write_text(TASK.format(data=tmp_path / "pairs.jsonl"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "qalam_core.evaluation.harness", "run", "--model", "qalam", "--model_args",
         f"path={tmp_path / 'nothing'}", "--tasks", "arabic_pairs", "--include_path", str(tmp_path)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: {tmp_path / 'nothing'}: not a folder, so not a package"
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("processes")
def test_the_harness_runs_a_local_task_offline(package: Path, tmp_path: Path) -> None:
    lines = [
        {"start": "القط", "good": " يأكل السمك", "bad": " السمك السمك"},
        {"start": "في", "good": " القط", "bad": " في"},
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "pairs.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "qalam_core.evaluation.harness", "run", "--model", "qalam",
         "--model_args", f"path={package}", "--tasks", "arabic_pairs",
         "--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(file.read_text(encoding="utf-8"))["results"]["arabic_pairs"]
    assert results["acc,none"] in (0.0, 0.5, 1.0)
    assert "arabic_pairs" in done.stdout
