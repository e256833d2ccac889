"""Crossing over: Hugging Face GPT-2, safetensors, and packages of the original Al-Qalam, there and back."""

from __future__ import annotations

import base64
import json
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qalam_core.arabic import PROFILES
from qalam_core.errors import PackageError
from qalam_core.evaluation.integrity import transformer
from qalam_core.package import generate, read, verify, write
from qalam_core.package.interop.gpt2 import export_gpt2, from_gpt2, import_gpt2, to_gpt2
from qalam_core.package.interop.original import import_original
from qalam_core.package.interop.safetensors_file import export_safetensors, import_safetensors
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.package.runtime.weights_reader import tensor_shapes
from qalam_core.package.vocabulary import tokenizer_json, vocabulary, vocabulary_of
from qalam_core.tokens.tokenizer import Algorithm, ArabicTokenizer
from tests.conftest import sentences
from tests.small_package import CONFIG, contents, export, weights


def words_of(algorithm: Algorithm) -> ArabicTokenizer:
    tokenizer = ArabicTokenizer(300, algorithm)
    tokenizer.build_vocab(sentences(60))
    return tokenizer


@pytest.fixture(scope="module")
def bpe() -> ArabicTokenizer:
    return words_of("bpe")


def build(folder: Path, tokenizer: ArabicTokenizer, **changes: Any) -> Path:
    """A package of random weights, large enough that a wrong activation shows."""
    config = {
        "VOCAB_SIZE": len(tokenizer), "DIM": 16, "NUM_HEADS": 4, "NUM_LAYERS": 2, "MAX_SEQ_LEN": 40, "TIED": True,
        "ACTIVATION": "gelu", **changes,
    }  # fmt: skip
    write(
        folder, config=config, weights=weights(config), card="# بطاقة", provenance={},
        vocabulary=vocabulary(tokenizer.algorithm, tokenizer.words, tokenizer.merges, tokenizer.rules),
    )  # fmt: skip
    return folder


def same_weights(some: Path, other: Path) -> bool:
    left, right = read(some).weights, read(other).weights
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


def edit_json(path: Path, **changes: Any) -> None:
    data = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value != "absent"}), encoding="utf-8")


# -- activation -------------------------------------------------------------------------------------


def gelu_by_the_book(x: float, activation: str) -> float:
    if activation == "gelu":
        return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_both_backends_know_both_activations(activation: str) -> None:
    config = {**CONFIG, "ACTIVATION": activation}
    values = weights(config, scale=0.6)
    ours = NumpyTransformer(config, values)
    theirs = transformer(config, {name: torch.from_numpy(tensor) for name, tensor in values.items()})
    assert theirs.activation == ours.activation == activation
    x = np.linspace(-5, 5, 401, dtype=np.float32)
    expected = [gelu_by_the_book(float(value), activation) for value in x]
    assert np.abs(ours._blocks[0].gelu(x) - expected).max() < 2e-6
    ids = np.random.default_rng(1).integers(0, 12, (3, 10))
    with torch.inference_mode():
        logits = theirs(torch.from_numpy(ids))[0].numpy()
    assert np.abs(ours(ids)[0] - logits).max() < 1e-4
    other = NumpyTransformer({**config, "ACTIVATION": "gelu" if activation == "gelu_tanh" else "gelu_tanh"}, values)
    assert np.abs(other(ids)[0] - logits).max() > 1e-4  # or this test would not notice a mix-up


def test_a_package_carries_its_activation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(tmp_path / "tanh_model", config={**CONFIG, "ACTIVATION": "gelu_tanh"})
    assert verify(folder) == []
    monkeypatch.syspath_prepend(str(tmp_path))
    loader = __import__("tanh_model.loader", fromlist=["load_model"])
    assert [loader.load_model(backend)[0].activation for backend in ("torch", "numpy")] == ["gelu_tanh"] * 2
    with pytest.raises(PackageError, match="gelu, gelu_tanh"):
        export(tmp_path / "relu_model", config={**CONFIG, "ACTIVATION": "relu"})
    with pytest.raises(ValueError, match='"relu": known are gelu, gelu_tanh'):
        type(loader.load_model("torch")[0])(dim=8, num_heads=2, activation="relu")


# -- tokenizer.json ---------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["bpe", "word"])
def test_the_tokenizer_json_is_the_librarys_byte_for_byte(algorithm: Algorithm) -> None:
    tokenizer = words_of(algorithm)
    text = tokenizer_json(algorithm, tokenizer.words, tokenizer.merges, tokenizer.rules)
    assert text == tokenizer.to_json()
    found = vocabulary_of(text)
    assert found == vocabulary(algorithm, tokenizer.words, tokenizer.merges, tokenizer.rules)


def change_model(data: Any) -> None:
    data["model"]["ignore_merges"] = True


def change_split(data: Any) -> None:
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r" ?\p{L}+"


def change_id(data: Any) -> None:
    data["model"]["vocab"]["Ġ"] = 10**6


def change_rule(data: Any) -> None:
    data["normalizer"]["normalizers"][1]["pattern"]["Regex"] = "(a+)+"


def change_specials(data: Any) -> None:
    data["added_tokens"][3]["content"] = "<|endoftext|>"


@pytest.mark.parametrize("change", [
    change_model, change_split, change_id, change_rule, change_specials, lambda data: data.clear(),
    lambda data: data.update(normalizer=None), lambda data: data["model"].update(vocab=[]),
    lambda data: data["model"].update(vocab={"a": "b", "c": 1}), lambda data: data.update(decoder={}),
    lambda data: data["model"]["merges"].append(["no", "such one"]),
])  # fmt: skip
def test_a_foreign_tokenizer_is_refused(bpe: ArabicTokenizer, change: Callable[[Any], None]) -> None:
    data = json.loads(bpe.to_json())
    change(data)
    with pytest.raises(PackageError, match=r"^tokenizer\.json:0: .*name a package"):
        vocabulary_of(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "[" * 10**5, '{"a": 1, "a": 2}'])
def test_a_tokenizer_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(PackageError, match=r"^tokenizer\.json:0: "):
        vocabulary_of(text)


# -- GPT-2 ------------------------------------------------------------------------------------------


def hf_model(folder: Path) -> Any:
    from transformers import GPT2LMHeadModel

    loaded: Any = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not any(report.values()), report
    return model.eval()


@pytest.mark.parametrize(("tied", "activation"), [(True, "gelu"), (False, "gelu_tanh"), (True, "gelu_tanh")])
def test_transformers_gives_our_logits_and_our_text(
    tmp_path: Path, bpe: ArabicTokenizer, tied: bool, activation: str
) -> None:
    from transformers import AutoTokenizer

    package = build(tmp_path / "ours", bpe, TIED=tied, ACTIVATION=activation)
    export_gpt2(package, tmp_path / "hf")
    found = read(package)
    theirs = hf_model(tmp_path / "hf")
    ours = transformer(found.config, {name: torch.from_numpy(tensor) for name, tensor in found.weights.items()})
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 300, (3, 40)))
    with torch.inference_mode():
        logits = ours(ids)[0]
        assert (theirs(ids).logits - logits).abs().max() < 1e-5
        prompt = ids[:1, :5]
        expected = ours.generate(prompt, 30, temperature=0)
        assert theirs.generate(prompt, max_new_tokens=30, do_sample=False).tolist() == expected.tolist()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in [*sentences(3, seed=5), "كَتَبَ\n<END> 123 abc"]:
        assert tokenizer(text)["input_ids"] == bpe.encode(text)
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == bpe.decode(bpe.encode(text))
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 2, 3)

    theirs.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "again")
    assert len(list((tmp_path / "again").glob("model-*.safetensors"))) > 1
    assert import_gpt2(tmp_path / "again", tmp_path / "back") == []
    assert same_weights(package, tmp_path / "back")
    assert verify(tmp_path / "back") == []
    back = read(tmp_path / "back")
    assert (back.config, back.vocabulary) == (found.config, found.vocabulary)
    for name in ("config.py", "vocab.py", "weights.py", "tokenizer.json"):
        assert (tmp_path / "back" / name).read_bytes() == (package / name).read_bytes()


def test_an_export_has_the_same_bytes_each_time(tmp_path: Path, bpe: ArabicTokenizer) -> None:
    package = build(tmp_path / "ours", bpe)
    export_gpt2(package, tmp_path / "a")
    export_gpt2(package, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(contents(tmp_path / "a")) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    with safe_open(tmp_path / "a" / "model.safetensors", framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt"}  # transformers 4 refuses a file without it
    with pytest.raises(PackageError, match="not an empty folder"):
        export_gpt2(package, tmp_path / "a")


@pytest.fixture
def checkpoint(tmp_path: Path, bpe: ArabicTokenizer) -> Path:
    """An exported checkpoint, to be damaged."""
    export_gpt2(build(tmp_path / "ours", bpe), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def resave(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)


def test_old_checkpoints_without_prefix_and_with_masks(tmp_path: Path, checkpoint: Path) -> None:
    def age(state: dict[str, torch.Tensor]) -> None:
        for name in list(state):
            state[name.removeprefix("transformer.")] = state.pop(name)
        for index in range(2):
            state[f"h.{index}.attn.bias"] = torch.ones(1, 1, 40, 40, dtype=torch.uint8)
            state[f"h.{index}.attn.masked_bias"] = torch.tensor(-1e4)
        state["lm_head.weight"] = state["wte.weight"].clone()

    resave(checkpoint, age)
    edit_json(checkpoint / "config.json", architectures="absent", tie_word_embeddings="absent", n_inner=64, n_ctx=40)
    import_gpt2(checkpoint, tmp_path / "back")
    assert same_weights(tmp_path / "ours", tmp_path / "back")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_widens_without_a_loss(tmp_path: Path, checkpoint: Path, kind: torch.dtype) -> None:
    resave(checkpoint, lambda state: state.update({name: tensor.to(kind) for name, tensor in state.items()}))
    import_gpt2(checkpoint, tmp_path / "back")
    expected = {
        name: torch.from_numpy(tensor).to(kind).float() for name, tensor in read(tmp_path / "ours").weights.items()
    }
    assert all((expected[name].numpy() == tensor).all() for name, tensor in read(tmp_path / "back").weights.items())


@pytest.mark.parametrize(("name", "dim", "layers", "heads"), [("base", 768, 12, 12), ("medium", 1024, 24, 16)])
def test_the_layouts_of_aragpt2(name: str, dim: int, layers: int, heads: int) -> None:
    """All names and shapes, with memory for one value each."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=64000, n_embd=dim, n_layer=layers, n_head=heads))
    state = {
        key: np.broadcast_to(np.float32(0), tuple(tensor.shape))
        for key, tensor in model.state_dict().items()
        if key != "lm_head.weight"
    }
    config = {"VOCAB_SIZE": 64000, "DIM": dim, "NUM_LAYERS": layers, "MAX_SEQ_LEN": 1024, "TIED": True}
    ours = from_gpt2(state)
    assert {key: tensor.shape for key, tensor in ours.items()} == tensor_shapes(config)
    assert {key: tensor.shape for key, tensor in to_gpt2(ours, config).items()} == {
        key: tensor.shape for key, tensor in state.items()
    }


def test_words_may_be_lent(tmp_path: Path, checkpoint: Path) -> None:
    lender = read(tmp_path / "ours").vocabulary
    data = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    change_split(data)
    (checkpoint / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(PackageError, match="name a package to take the words from"):
        import_gpt2(checkpoint, tmp_path / "back")
    import_gpt2(checkpoint, tmp_path / "back", vocabulary=lender)
    assert read(tmp_path / "back").vocabulary == lender
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(PackageError, match=r"no tokenizer\.json"):
        import_gpt2(checkpoint, tmp_path / "other")


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_type": "aragpt2", "architectures": ["AraGPT2LMHeadModel"]}, "GROVER"),
    ({"architectures": ["AraGPT2LMHeadModel"]}, "GROVER"),
    ({"model_type": "llama"}, "model_type 'llama'"),
    ({"architectures": ["GPT2ForSequenceClassification"]}, "GPT2ForSequenceClassification"),
    ({"architectures": 7}, "architectures 7"),
    ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
    ({"scale_attn_weights": False}, "scale_attn_weights"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ({"add_cross_attention": True}, "add_cross_attention"),
    ({"n_inner": 32}, "n_inner is 32"),
    ({"activation_function": "relu"}, "'relu'"),
    ({"activation_function": []}, r"activation_function \[\]"),
    ({"tie_word_embeddings": 1}, "true or false"),
    ({"tie_word_embeddings": False}, "lm_head"),
    ({"n_head": 3}, "divisible"),
    ({"n_head": True}, "n_head must be there"),
    ({"n_layer": "absent"}, "n_layer must be there"),
    ({"n_layer": 10**9}, "NUM_LAYERS must be between"),
    ({"n_layer": 1}, r"blocks\.1"),
    ({"n_layer": 3}, r"blocks\.2"),
    ({"n_positions": 41}, "pos_embedding"),
    ({"hidden_size": 99}, "two values"),
    ({"vocab_size": 301}, "301, but the tokenizer has 300"),
    ({"vocab_size": -1}, "VOCAB_SIZE must be between"),
])  # fmt: skip
def test_what_this_model_cannot_be_is_refused_by_name(
    tmp_path: Path, checkpoint: Path, changes: dict[str, Any], message: str
) -> None:
    edit_json(checkpoint / "config.json", **changes)
    with pytest.raises(PackageError, match=message) as caught:
        import_gpt2(checkpoint, tmp_path / "back")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "back").exists()


def test_default_activation_is_gpt2s_own(tmp_path: Path, checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", activation_function="absent")
    import_gpt2(checkpoint, tmp_path / "back")
    assert read(tmp_path / "back").config["ACTIVATION"] == "gelu_tanh"


def other_head(state: dict[str, torch.Tensor]) -> None:
    state["lm_head.weight"] = state["transformer.wte.weight"] + 1


def both_prefixes(state: dict[str, torch.Tensor]) -> None:
    state["wpe.weight"] = state["transformer.wpe.weight"].clone()


def not_turned(state: dict[str, torch.Tensor]) -> None:
    state["transformer.h.0.mlp.c_fc.weight"] = state["transformer.h.0.mlp.c_fc.weight"].T


def infinite(state: dict[str, torch.Tensor]) -> None:
    state["transformer.ln_f.bias"][0] = torch.inf


def extra(state: dict[str, torch.Tensor]) -> None:
    state["transformer.h.0.attn.q_attn.weight\n\u202e"] = torch.ones(1)


def doubles(state: dict[str, torch.Tensor]) -> None:
    state["transformer.ln_f.bias"] = state["transformer.ln_f.bias"].double()


@pytest.mark.parametrize(("change", "message"), [
    (other_head, "a head of its own"), (both_prefixes, "with and without the prefix"), (not_turned, "fc1.weight"),
    (infinite, "not finite"), (extra, r"q_attn\.weight\\n\\u202e' is no tensor"), (doubles, "type F64"),
    (lambda state: state.pop("transformer.ln_f.bias"), '"ln_out.bias" is missing'),
    (lambda state: state.update({"transformer.lm_head.weight": torch.ones(1)}), "no tensor of GPT2LMHeadModel"),
])  # fmt: skip
def test_wrong_tensors_are_refused_by_name(
    tmp_path: Path, checkpoint: Path, change: Callable[[Any], None], message: str
) -> None:
    resave(checkpoint, change)
    with pytest.raises(PackageError, match=message):
        import_gpt2(checkpoint, tmp_path / "back")


def test_pickles_and_halves_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    weights_file = checkpoint / "model.safetensors"
    raw = weights_file.read_bytes()
    weights_file.write_bytes(raw[:-1])
    with pytest.raises(PackageError, match=r"^model\.safetensors: not a whole safetensors file"):
        import_gpt2(checkpoint, tmp_path / "back")
    weights_file.write_bytes(struct.pack("<Q", 1 << 40) + raw[8:])
    with pytest.raises(PackageError, match="not a whole"):
        import_gpt2(checkpoint, tmp_path / "back")
    for names, message in [
        (["pytorch_model.bin"], "save_pretrained"),
        ([], "no model.safetensors"),
        (["model-00001-of-00002.safetensors"], "missing"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00003.safetensors"], "missing or of two models"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "stands in an earlier file"),
        (["model-00000-of-99999.safetensors"], "missing"),
    ]:
        for path in checkpoint.glob("*model*"):
            path.unlink()
        for name in names:
            (checkpoint / name).write_bytes(raw)
        with pytest.raises(PackageError, match=message):
            import_gpt2(checkpoint, tmp_path / "back")


def test_a_folder_that_is_none(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(PackageError, match="no such folder"):
        import_gpt2(tmp_path / "nowhere", tmp_path / "back")
    with pytest.raises(PackageError, match="a package of this project already"):
        import_gpt2(tmp_path / "ours", tmp_path / "back")
    with pytest.raises(PackageError, match="not an empty folder"):
        import_gpt2(checkpoint, tmp_path / "ours")
    (checkpoint / "config.json").write_bytes(b"{\xff")
    with pytest.raises(PackageError, match=r"^config\.json:1: not UTF-8"):
        import_gpt2(checkpoint, tmp_path / "back")
    (checkpoint / "config.json").unlink()
    os.mkfifo(checkpoint / "config.json")  # reading one would wait for ever
    with pytest.raises(PackageError, match="no such file"):
        import_gpt2(checkpoint, tmp_path / "back")


# -- safetensors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_safetensors_there_and_back(tmp_path: Path, tied: bool) -> None:
    package = export(tmp_path / "model", config={**CONFIG, "TIED": tied})
    file = tmp_path / "model.safetensors"
    export_safetensors(package, file)
    assert {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()} == {
        name: tensor.tobytes() for name, tensor in read(package).weights.items()
    }
    assert len(import_safetensors(file, package, tmp_path / "back")) == 1
    assert same_weights(package, tmp_path / "back")
    assert verify(tmp_path / "back") == []
    with pytest.raises(PackageError, match="exists"):
        export_safetensors(package, file)
    with pytest.raises(PackageError, match="cannot be written"):
        export_safetensors(package, tmp_path / "model" / "config.py" / "x.safetensors")
    with pytest.raises(PackageError, match="no such file"):
        import_safetensors(tmp_path / "none", package, tmp_path / "other")


def test_a_checkpoint_of_torch_may_hold_the_tied_head(tmp_path: Path) -> None:
    package = export(tmp_path / "model")
    state = {name: torch.from_numpy(tensor * 2) for name, tensor in read(package).weights.items()}
    state["lm_head.weight"] = state["embedding.weight"].clone()
    save_file(state, tmp_path / "model.safetensors")
    import_safetensors(tmp_path / "model.safetensors", package, tmp_path / "back")
    assert all(
        (read(tmp_path / "back").weights[name] == tensor.numpy()).all()
        for name, tensor in state.items()
        if "head" not in name
    )
    state["lm_head.weight"][0, 0] += 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(PackageError, match="a head of its own"):
        import_safetensors(tmp_path / "model.safetensors", package, tmp_path / "other")


# -- the original -----------------------------------------------------------------------------------

ORIGINAL = {"VOCAB_SIZE": 12, "DIM": 8, "NUM_HEADS": 2, "NUM_LAYERS": 2, "MAX_SEQ_LEN": 10, "TIED": True}
THEIR_WORDS = ("<PAD>", "<UNK>", "<START>", "<END>", "القط", "ياكل", "السمك،", "'", "it's", 'a"b', "\\\n\u200f", ".")


def packed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.astype("<f4").tobytes(), 9)).decode()


def their_files(values: dict[str, np.ndarray]) -> dict[str, str]:
    """The files of the original's exporter, by the description of its format."""
    sizes = "".join(f"{name} = {size}\n" for name, size in ORIGINAL.items() if name != "TIED")
    lines = []
    for name, tensor in values.items():
        stored = tensor[None] if name == "pos_embedding" else tensor
        lines.append(f'    "{name}": ("{packed(stored)}", {stored.shape}),\n')
    parameters = sum(tensor.size for tensor in values.values())
    their_index = {word: index for index, word in enumerate(THEIR_WORDS)}
    return {
        "__init__.py": "from .loader import load_model\n",
        "loader.py": "raise SystemExit('executed')\n",
        "config.py": '# -*- coding: utf-8 -*-\n"""\nGenerated: 2026-02-01T11:24:59.973542\nTrain Steps: 5\n"""\n\n'
        f'# === CONFIG ===\n{sizes}PARAMETERS = {parameters}\nTRAIN_STEPS = 5\nVERSION = "5.0"\n',
        "vocab.py": f'# -*- coding: utf-8 -*-\n"""Vocabulary"""\n\nWORD2IDX = {their_index!r}'
        "\n\nIDX2WORD = {v: k for k, v in WORD2IDX.items()}\n",
        "weights.py": '# -*- coding: utf-8 -*-\n"""\nUse unpack(WEIGHTS["name"], shape)\n"""\nimport zlib\n\n'
        "def unpack(text, shape):\n    raise SystemExit('executed')\n\n# === WEIGHTS ===\nWEIGHTS = {\n"
        + "".join(lines)
        + "}\n\ndef load_weights():\n    return {name: unpack(*pair) for name, pair in WEIGHTS.items()}\n",
    }  # fmt: skip


def their_folder(folder: Path, line_end: str = "\n") -> Path:
    folder.mkdir()
    for name, text in their_files(weights(ORIGINAL)).items():
        (folder / name).write_bytes(text.replace("\n", line_end).encode())
    return folder


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_package_of_the_original(tmp_path: Path, line_end: str) -> None:
    folder = their_folder(tmp_path / "original", line_end)
    remarks = import_original(folder, tmp_path / "ours")
    # "السمك،", "'" alone is a word here, but "it's", 'a"b' and the escapes are split or dropped
    assert [remark.partition("; ")[2] for remark in remarks] == ["4 of 12 words cannot be reached by it"]
    found = read(tmp_path / "ours", strict=True)
    assert all(found.weights[name].tobytes() == tensor.tobytes() for name, tensor in weights(ORIGINAL).items())
    assert found.vocabulary.words == THEIR_WORDS
    assert found.vocabulary.rules == PROFILES["search"]
    assert found.config["ACTIVATION"] == "gelu" and found.config["TIED"] is True
    assert verify(tmp_path / "ours") == []
    assert generate(found, "القط يأكل", 3, seed=0).startswith("القط ياكل")
    export_gpt2(tmp_path / "ours", tmp_path / "hf")
    import_gpt2(tmp_path / "hf", tmp_path / "back")
    assert same_weights(tmp_path / "ours", tmp_path / "back")
    with pytest.raises(PackageError, match="already"):
        import_original(tmp_path / "ours", tmp_path / "other")


EMBEDDING = packed(weights(ORIGINAL)["embedding.weight"])
BOMB = base64.b64encode(zlib.compress(b"\0" * (1 << 28), 9)).decode()
SMALL_BOMB = base64.b64encode(zlib.compress(b"\0" * (3 << 20), 9)).decode()  # its line is no longer than an honest one
SHORT = packed(np.zeros(95))
LONG = packed(np.zeros(97))
CUT = base64.b64encode(zlib.compress(weights(ORIGINAL)["embedding.weight"].tobytes())[:-3]).decode()
TAIL = base64.b64encode(zlib.compress(weights(ORIGINAL)["embedding.weight"].tobytes()) + b"more").decode()
LINE = f'    "embedding.weight": ("{EMBEDDING}", (12, 8)),\n'


@pytest.mark.parametrize(("file", "old", "new", "message"), [
    ("weights.py", EMBEDDING, BOMB[: len(BOMB) // 4 * 4], r"weights\.py:\d+: longer than any tensor"),
    ("weights.py", EMBEDDING, SMALL_BOMB, "holds more than the 384 bytes"),
    ("weights.py", EMBEDDING, LONG, r"weights\.py:12: .* holds more than the 384 bytes"),
    ("weights.py", EMBEDDING, SHORT, "holds less than"),
    ("weights.py", EMBEDDING, CUT, "holds less than"),
    ("weights.py", EMBEDDING, TAIL, "holds more than"),
    ("weights.py", EMBEDDING, EMBEDDING[:-1], "not base64 of zlib"),
    ("weights.py", EMBEDDING, base64.b64encode(b"x" * 400).decode(), "not base64 of zlib"),
    ("weights.py", LINE, LINE + LINE, "stands twice"),
    ("weights.py", LINE, "", '"embedding.weight" is missing'),
    ("weights.py", "(12, 8)", "(8, 12)", r"is \(8, 12\), but config.py demands \(12, 8\)"),
    ("weights.py", "(12, 8)", "(12, 8,)", "not a tensor"),
    ("weights.py", "(12, 8)", "(12, 8, )", "not a tensor"),
    ("weights.py", "(12, 8)", "(999999999999, 8)", "not a tensor"),
    ("weights.py", "(12, 8)", "(12, 8) if True else ()", "not a tensor"),
    ("weights.py", "(1, 10, 8)", "(10, 8)", "pos_embedding"),
    ("weights.py", '"embedding.weight": (', '"embedding.weight": open("x", "w") or (', "not a tensor"),
    ("weights.py", '"embedding.weight"', '"lm_head.weight"', "no tensor of this config"),
    ("weights.py", "WEIGHTS = {\n", "WEIGHTS = {\n    **evil(),\n", "not a tensor"),
    ("weights.py", "WEIGHTS = {\n", "weights = {\n", "changes WEIGHTS|too long|does not come"),
    ("weights.py", "}\n\ndef", "}\nWEIGHTS['a'] = 1\ndef", "changes WEIGHTS"),
    ("weights.py", "}\n\ndef", "}\nWEIGHTS = {\ndef", "changes WEIGHTS"),
    ("weights.py", "}\n\ndef", "}\n" + "#\n" * 300 + "def", "too many lines"),
    ("weights.py", "import zlib\n", "#\n" * 300, "does not come"),
    ("config.py", "VOCAB_SIZE = 12", "VOCAB_SIZE = __import__('os').getpid()", r"config\.py:8: not a setting"),
    ("config.py", "VOCAB_SIZE = 12", "VOCAB_SIZE = 012", "not a setting"),
    ("config.py", "VOCAB_SIZE = 12", "VOCAB_SIZE = 12\nVOCAB_SIZE = 12", "stands twice"),
    ("config.py", "VOCAB_SIZE = 12\n", "", "VOCAB_SIZE is missing"),
    ("config.py", "VOCAB_SIZE = 12", 'VOCAB_SIZE = "12"', "VOCAB_SIZE is missing"),
    ("config.py", "VOCAB_SIZE = 12", "VOCAB_SIZE = 13", "PARAMETERS is"),
    ("config.py", "NUM_LAYERS = 2", "NUM_LAYERS = 1000000000000", "NUM_LAYERS must be between"),
    ("config.py", "NUM_HEADS = 2", "NUM_HEADS = 3", "divisible"),
    ("vocab.py", "'القط': 4", "'القط': exit()", "neither 'word': id"),
    ("vocab.py", "'القط': 4", "'القط': 5", "two words have id 5"),
    ("vocab.py", "'القط': 4", "'القط': 40", "12 words, but VOCAB_SIZE is 12"),
    ("vocab.py", "'القط'", "'ياكل'", "two ids"),
    ("vocab.py", "'<END>': 3, 'القط': 4", "'<END>': 4, 'القط': 3", "ids 0 to 3"),
    ("vocab.py", "'القط'", "'\\N{DIGIT ONE}'", "an escape"),
    ("vocab.py", "'القط'", "'\\ud800'", "an escape"),
    ("vocab.py", "'القط'", "'القط' 'x'", "neither 'word': id"),
    ("vocab.py", "IDX2WORD = {v: k", "IDX2WORD = {exit(): k", "nothing else"),
    ("vocab.py", "\n\nIDX2WORD", "\nimport os\nIDX2WORD", "nothing else"),
])  # fmt: skip
def test_an_original_that_is_not_honest(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    folder = their_folder(tmp_path / "original")
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(PackageError, match=message) as caught:
        import_original(folder, tmp_path / "ours")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours").exists()


def test_promises_are_bounded_by_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Honest shapes and honest deflate, but a gigabyte from nothing: refused before any of it comes out."""
    folder = their_folder(tmp_path / "original")
    config = (folder / "config.py").read_text(encoding="utf-8").replace("MAX_SEQ_LEN = 10", "MAX_SEQ_LEN = 99999999")
    (folder / "config.py").write_text("".join(line for line in config.splitlines(True) if "PARAM" not in line))
    monkeypatch.setattr(zlib, "decompressobj", lambda: pytest.fail("decompressed"))
    with pytest.raises(PackageError, match="no honest file shrinks so far"):
        import_original(folder, tmp_path / "ours")


def test_a_bomb_is_stopped_a_byte_after_its_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    inflate = zlib.decompressobj

    class Counting:
        def __init__(self) -> None:
            self.inflater = inflate()

        def decompress(self, *arguments: Any) -> bytes:
            raw: bytes = self.inflater.decompress(*arguments)
            sizes.append(len(raw))
            return raw

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inflater, name)

    folder = their_folder(tmp_path / "original")
    text = (folder / "weights.py").read_text(encoding="utf-8")
    (folder / "weights.py").write_text(text.replace(EMBEDDING, SMALL_BOMB), encoding="utf-8")
    monkeypatch.setattr(zlib, "decompressobj", Counting)
    with pytest.raises(PackageError, match="holds more than the 384 bytes"):
        import_original(folder, tmp_path / "ours")
    assert sizes == [385]


def test_files_that_are_no_files(tmp_path: Path) -> None:
    for name in ("config.py", "vocab.py", "weights.py"):
        folder = their_folder(tmp_path / f"linked-{name}")
        (folder / name).rename(tmp_path / name)
        with pytest.raises(PackageError, match="no such file"):
            import_original(folder, tmp_path / "ours")
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(PackageError, match="a link"):
            import_original(folder, tmp_path / "ours")
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(PackageError, match="no such file"):
            import_original(folder, tmp_path / "ours")


def test_every_cut_is_refused(tmp_path: Path) -> None:
    folder = their_folder(tmp_path / "original")
    whole = (folder / "weights.py").read_bytes()
    end = whole.index(b"}\n\ndef")
    for cut in range(0, end + 1, 97):
        (folder / "weights.py").write_bytes(whole[:cut])
        with pytest.raises(PackageError):
            import_original(folder, tmp_path / "ours")
