"""One model by six doors: imported with numpy and with torch, served, as transformers load a folder of the Hub, in a
browser, and in the evaluation harness. Each goes on with the same 100 tokens."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from qalam_core.package import ModelConfig
from qalam_core.package.interop.browser_page import export_page
from qalam_core.package.runtime.tokenizer import Tokenizer
from qalam_core.reports.hub import export_hub
from tests.browsers import CHROMIUM, probe
from tests.flows.serving.test_completions import start
from tests.package.conftest import trained_tokenizer
from tests.small_package import export

PROMPT, NEW = "القط يأكل", 100

IMPORTED = """
import json, sys
from model import load_model, load_tokenizer
tokenizer = load_tokenizer()
ids = [tokenizer.specials.start, *tokenizer.encode({prompt!r})]
found = {{}}
for backend in ("numpy", "torch"):
    model = load_model(backend)[0]
    given = __import__("torch").tensor([ids]) if backend == "torch" else [ids]
    found[backend] = model.generate(given, {new}, temperature=0)[0].tolist()
print(json.dumps(found))
"""

IN_BROWSER = """
const ids = [opened.tokenizer.roles.START, ...opened.tokenizer.encode(%s)];
found([...ids, ...generate(opened.model, ids, opened.tokenizer.roles.END, %d, 0)]);
"""

BLOCKS: dict[str, dict[str, Any]] = {
    "original": {},
    "llama": {"block": "llama", "num_kv_heads": 2, "head_dim": 6, "hidden_dim": 50, "rope_base": 500.0,
              "norm_epsilon": 1e-5, "qk_norm": True},
}  # fmt: skip


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("block", BLOCKS)
def test_one_model_by_six_doors(block: str, tmp_path: Path) -> None:
    vocabulary = trained_tokenizer("bpe").vocabulary
    config = ModelConfig(len(vocabulary.words), dim=30, num_heads=6, num_layers=2, max_seq_len=128, **BLOCKS[block])
    package = export(tmp_path / "model", config=config, vocabulary=vocabulary, provenance={})
    tokenizer = Tokenizer(vocabulary)

    script = IMPORTED.format(prompt=PROMPT, new=NEW)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    imported = json.loads(done.stdout)
    ids, text = imported["numpy"], tokenizer.decode(imported["numpy"])
    begin = len(tokenizer.encode(PROMPT)) + 1
    assert len(ids) == begin + NEW, "it does not end before"
    assert len(set(ids[begin:])) > 4, "it does not repeat a few tokens"
    assert imported["torch"] == ids

    process, address = start(package, "--port", 0)
    try:
        body = {"prompt": PROMPT, "max_tokens": NEW, "temperature": 0, "echo": True}
        answer = httpx.post(f"{address}/v1/completions", json=body).json()
        assert answer["choices"][0]["text"] == text
        assert answer["usage"]["completion_tokens"] == NEW
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)

    assert by_transformers(package, tmp_path / "checkpoint") == ids

    if CHROMIUM is not None:
        export_page(package, tmp_path / "model.html", "f32")
        assert probe(tmp_path / "model.html", tmp_path, IN_BROWSER % (json.dumps(PROMPT), NEW)) == ids

    if find_spec("lm_eval"):
        from qalam_core.evaluation.harness import QalamLM

        request: Any = SimpleNamespace(args=(PROMPT, {"max_gen_toks": NEW, "until": []}))
        assert tokenizer.decode(ids[:begin]) + QalamLM(str(package)).generate_until([request])[0] == text
    shutil.rmtree(package)


def by_transformers(package: Path, folder: Path) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export_hub(package, folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    given: Any = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")
    with torch.no_grad():
        found: list[int] = model.generate(**given, max_new_tokens=NEW, do_sample=False)[0].tolist()
    return found
