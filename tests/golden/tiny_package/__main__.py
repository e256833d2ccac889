"""Command line of a package: `python -m my_model "بسم"` prints the prompt and what follows.
Takes a prompt and sampling options, gives text on standard output.
It does not know anything the package's other modules do not say.
"""

from __future__ import annotations

import argparse
import sys
from io import TextIOWrapper
from typing import Any

import numpy as np

from .loader import load_model, load_tokenizer
from .runtime import NumpyTransformer

_START = 2


def main() -> None:
    """Parse the command line, continue the prompt, print."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description="Continue an Arabic text.")
    parser.add_argument("prompt", help="the text to continue; may be empty")
    parser.add_argument("--tokens", type=int, default=40, help="how many tokens to add at most (40)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (0.8)")
    parser.add_argument("--top-k", type=int, default=50, help="choose among so many tokens, 0 all (50)")
    parser.add_argument("--seed", type=int, help="repeat a choice")
    parser.add_argument("--backend", choices=["auto", "torch", "numpy"], default="auto")
    options = parser.parse_args()
    model, _, _ = load_model(options.backend)
    tokenizer = load_tokenizer()
    ids_BT = np.array([[_START, *tokenizer.encode(options.prompt)]], np.int64)
    prompt: Any = ids_BT
    if not isinstance(model, NumpyTransformer):
        import torch

        prompt = torch.from_numpy(ids_BT)
    generated = model.generate(prompt, options.tokens, options.temperature, options.top_k, options.seed)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # Arabic, whatever the locale says
    print(tokenizer.decode(generated[0].tolist()))


if __name__ == "__main__":
    main()
