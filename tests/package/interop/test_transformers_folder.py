"""Import and export of checkpoints of Hugging Face transformers: GPT-2, Llama and Qwen3."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qalam_core.errors import PackageError
from qalam_core.evaluation.integrity import transformer
from qalam_core.package import ModelConfig, generate, read, verify
from qalam_core.package.interop.layouts import GPT2, LAYOUTS, layout_of
from qalam_core.package.interop.transformers_folder import export_transformers, import_transformers
from qalam_core.package.runtime.architecture import END, START, UNK
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.package.runtime.tokenizer import Tokenizer
from qalam_core.tokens.tokenizer import Algorithm, ArabicTokenizer
from tests.conftest import examples, sentences
from tests.package.conftest import trained_tokenizer
from tests.small_package import contents, export, random_tensors, same_weights


def build(folder: Path, tokenizer: ArabicTokenizer, **changes: Any) -> Path:
    """A package of random weights, large enough to reveal a wrong activation."""
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "dim": 16, "num_heads": 4, "num_layers": 2, **changes}
    config = ModelConfig(max_seq_len=40, **shape)
    return export(folder, config=config, vocabulary=tokenizer.vocabulary, provenance={})


LLAMA: dict[str, Any] = {
    "block": "llama", "num_kv_heads": 2, "head_dim": 6, "hidden_dim": 24, "rope_base": 500.0, "norm_epsilon": 1e-5,
    "qk_norm": False,
}  # fmt: skip
QWEN3 = {**LLAMA, "qk_norm": True, "num_kv_heads": 1, "head_dim": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2-gelu": {},
    "gpt2-untied": {"tied": False, "activation": "gelu_tanh"},
    "gpt2-tanh": {"activation": "gelu_tanh"},
    "llama": LLAMA,
    "llama-untied": {**LLAMA, "tied": False, "num_kv_heads": 4},
    "qwen3": QWEN3,
    "qwen3-untied": {**QWEN3, "tied": False},
}


def edit_json(path: Path, **changes: Any) -> None:
    data = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value != "absent"}), encoding="utf-8")


def assert_refused(checkpoint: Path, changes: dict[str, Any], message: str, back: Path) -> None:
    """With these changes of config.json, an import is refused in one line, and leaves nothing."""
    edit_json(checkpoint / "config.json", **changes)
    with pytest.raises(PackageError, match=message) as caught:
        import_transformers(checkpoint, back)
    assert "\n" not in str(caught.value)
    assert not back.exists()


@pytest.fixture(scope="module", autouse=True)
def imports() -> None:
    """Import transformers here, so that its two seconds are not those of a test."""
    from transformers import AutoTokenizer, GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM, TextGenerationPipeline

    del AutoTokenizer, GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM, TextGenerationPipeline


def hf_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not any(report.values()), report
    return model.eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_an_export_gives_equal_logits_and_text_in_transformers(
    tmp_path: Path, bpe: ArabicTokenizer, shape: str
) -> None:
    from transformers import AutoTokenizer

    package = build(tmp_path / "ours", bpe, **SHAPES[shape])
    export_transformers(package, tmp_path / "hf")
    found = read(package)
    theirs = hf_model(tmp_path / "hf")
    assert type(theirs).__name__ == layout_of(found.config).architecture
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
        assert tokenizer(text)["input_ids"] == [START, *bpe.encode(text)]
        assert tokenizer(text, "كتب")["input_ids"] == [START, *bpe.encode(text), *bpe.encode("كتب")]
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == bpe.decode(bpe.encode(text))
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 2, 3)

    theirs.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "again")
    assert len(list((tmp_path / "again").glob("model-*.safetensors"))) > 1
    assert import_transformers(tmp_path / "again", tmp_path / "back") == []
    assert same_weights(package, tmp_path / "back")
    assert verify(tmp_path / "back") == []
    back = read(tmp_path / "back")
    assert (back.config, back.vocabulary) == (found.config, found.vocabulary)
    for name in ("config.py", "vocab.py", "weights.py", "tokenizer.json"):
        assert (tmp_path / "back" / name).read_bytes() == (package / name).read_bytes()


@pytest.mark.parametrize(("algorithm", "shape"), [("bpe", "gpt2-gelu"), ("word", "gpt2-gelu"), ("bpe", "qwen3")])
def test_the_pipeline_of_transformers_gives_the_text_of_generate(
    tmp_path: Path, algorithm: Algorithm, shape: str
) -> None:
    from transformers import pipeline

    package = build(tmp_path / "ours", trained_tokenizer(algorithm), **SHAPES[shape])
    export_transformers(package, tmp_path / "hf")
    found = read(package)
    theirs: Any = pipeline("text-generation", model=str(tmp_path / "hf"))
    prompts = ["القط يأكل السمك", "في", "<END> كتب 12"]
    tokenizer = theirs.tokenizer
    assert (
        tokenizer.decode([UNK, 7, UNK, 8, END], skip_special_tokens=True).strip()
        == Tokenizer(found.vocabulary).decode([UNK, 7, UNK, 8, END]).strip()
    )
    for batch_size in (1, len(prompts)):  # of prompts that differ in length
        answers = theirs(prompts, max_new_tokens=12, batch_size=batch_size)
        assert [answer[0]["generated_text"] for answer in answers] == [
            prompt + generate(found, prompt, 12, temperature=0).removeprefix(generate(found, prompt, 0))
            for prompt in prompts
        ]
    for prompt in ("", "  كَتَبَ  ", *prompts):
        expected = NumpyTransformer(found.config, found.weights).generate(
            np.array([[START, *Tokenizer(found.vocabulary).encode(prompt)]]), 12, temperature=0
        )
        answer = theirs(prompt, max_new_tokens=12, return_tensors=True)
        assert answer[0]["generated_token_ids"] == expected[0].tolist()
    assert import_transformers(tmp_path / "hf", tmp_path / "back") == []
    assert read(tmp_path / "back").vocabulary == found.vocabulary


def test_export_is_deterministic(tmp_path: Path, bpe: ArabicTokenizer) -> None:
    package = build(tmp_path / "ours", bpe)
    export_transformers(package, tmp_path / "a")
    export_transformers(package, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(contents(tmp_path / "a")) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    with safe_open(tmp_path / "a" / "model.safetensors", framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt"}  # transformers 4 refuses a file without it
    with pytest.raises(PackageError, match="not an empty folder"):
        export_transformers(package, tmp_path / "a")


@pytest.fixture
def checkpoint(tmp_path: Path, bpe: ArabicTokenizer) -> Path:
    """An exported checkpoint for tests that damage it."""
    export_transformers(build(tmp_path / "ours", bpe), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def resave(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)


def test_import_of_old_checkpoints_without_prefix_and_with_masks(tmp_path: Path, checkpoint: Path) -> None:
    def age(state: dict[str, torch.Tensor]) -> None:
        for name in list(state):
            state[name.removeprefix("transformer.")] = state.pop(name)
        for index in range(2):
            state[f"h.{index}.attn.bias"] = torch.ones(1, 1, 40, 40, dtype=torch.uint8)
            state[f"h.{index}.attn.masked_bias"] = torch.tensor(-1e4)
        state["lm_head.weight"] = state["wte.weight"].clone()

    resave(checkpoint, age)
    edit_json(checkpoint / "config.json", architectures="absent", tie_word_embeddings="absent", n_inner=64, n_ctx=40)
    import_transformers(checkpoint, tmp_path / "back")
    assert same_weights(tmp_path / "ours", tmp_path / "back")


def test_a_tied_matrix_may_be_there_as_the_head_alone(tmp_path: Path, checkpoint: Path) -> None:
    def keep_the_head(state: dict[str, torch.Tensor]) -> None:
        state["lm_head.weight"] = state.pop("transformer.wte.weight")

    resave(checkpoint, keep_the_head)
    assert import_transformers(checkpoint, tmp_path / "back") == []
    assert same_weights(tmp_path / "ours", tmp_path / "back")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padding", [1, 20])
def test_rows_without_words_are_dropped_with_a_remark(
    tmp_path: Path, bpe: ArabicTokenizer, tied: bool, padding: int
) -> None:
    def pad(state: dict[str, torch.Tensor]) -> None:
        for name in {"transformer.wte.weight", "lm_head.weight"} & state.keys():
            state[name] = torch.cat([state[name], torch.ones(padding, state[name].shape[1])])

    export_transformers(build(tmp_path / "ours", bpe, tied=tied), tmp_path / "checkpoint")
    resave(tmp_path / "checkpoint", pad)
    edit_json(tmp_path / "checkpoint" / "config.json", vocab_size=len(bpe) + padding)
    (remark,) = import_transformers(tmp_path / "checkpoint", tmp_path / "back")
    assert remark.startswith(f"{padding} of {len(bpe) + padding} rows")
    assert same_weights(tmp_path / "ours", tmp_path / "back")
    assert read(tmp_path / "back").config == read(tmp_path / "ours").config


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_imported_exactly(tmp_path: Path, checkpoint: Path, kind: torch.dtype) -> None:
    resave(checkpoint, lambda state: state.update({name: tensor.to(kind) for name, tensor in state.items()}))
    import_transformers(checkpoint, tmp_path / "back")
    expected = {
        name: torch.from_numpy(tensor).to(kind).float() for name, tensor in read(tmp_path / "ours").weights.items()
    }
    assert all((expected[name].numpy() == tensor).all() for name, tensor in read(tmp_path / "back").weights.items())


@pytest.mark.parametrize(("name", "dim", "layers", "heads"), [("base", 768, 12, 12), ("medium", 1024, 24, 16)])
def test_layouts_of_aragpt2(name: str, dim: int, layers: int, heads: int) -> None:
    """Check all names and shapes; each tensor has memory for one value."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=64000, n_embd=dim, n_layer=layers, n_head=heads))
    state = {
        key: np.broadcast_to(np.float32(0), tuple(tensor.shape))
        for key, tensor in model.state_dict().items()
        if key != "lm_head.weight"
    }
    config = ModelConfig(vocab_size=64000, dim=dim, num_heads=heads, num_layers=layers, max_seq_len=1024)
    ours = GPT2().from_theirs(state)
    assert {key: tensor.shape for key, tensor in ours.items()} == config.tensor_shapes()
    assert {key: tensor.shape for key, tensor in GPT2().to_theirs(ours, config).items()} == {
        key: tensor.shape for key, tensor in state.items()
    }


def test_words_can_come_from_a_package(tmp_path: Path, checkpoint: Path) -> None:
    words = read(tmp_path / "ours").vocabulary
    data = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r" ?\p{L}+"
    (checkpoint / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(PackageError, match="name a package to take the words from"):
        import_transformers(checkpoint, tmp_path / "back")
    import_transformers(checkpoint, tmp_path / "back", vocabulary=words)
    assert read(tmp_path / "back").vocabulary == words
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(PackageError, match=r"no tokenizer\.json"):
        import_transformers(checkpoint, tmp_path / "other")


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_type": "aragpt2", "architectures": ["AraGPT2LMHeadModel"]}, "GROVER"),
    ({"architectures": ["AraGPT2LMHeadModel"]}, "GROVER"),
    ({"model_type": "opt"}, "model_type 'opt'"),
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
    ({"n_head": True}, "n_head must be present"),
    ({"n_layer": "absent"}, "n_layer must be present"),
    ({"n_layer": 10**9}, "NUM_LAYERS must be between"),
    ({"n_layer": 1}, r"blocks\.1"),
    ({"n_layer": 3}, r"blocks\.2"),
    ({"n_positions": 41}, "pos_embedding"),
    ({"hidden_size": 99}, "two values"),
    ({"vocab_size": 299}, "299, but the tokenizer has 300"),
    ({"vocab_size": 301}, r'301, but "embedding\.weight" is of shape \(300, 16\)'),
    ({"vocab_size": -1}, "VOCAB_SIZE must be between"),
])  # fmt: skip
def test_unsupported_settings_are_refused_by_name(
    tmp_path: Path, checkpoint: Path, changes: dict[str, Any], message: str
) -> None:
    assert_refused(checkpoint, changes, message, tmp_path / "back")


@pytest.fixture(params=["llama", "qwen3"])
def rotary(request: pytest.FixtureRequest, tmp_path: Path, bpe: ArabicTokenizer) -> Path:
    """An exported checkpoint of a block with rotary positions, for tests that damage it."""
    export_transformers(build(tmp_path / "ours", bpe, **SHAPES[request.param]), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_type": "mistral"}, "model_type 'mistral'"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling is"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0}}, "rope_parameters"),
    ({"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}}, "partial_rotary"),
    ({"rope_parameters": {"rope_theta": 10000.0}}, "two values"),
    ({"rope_parameters": [1]}, "must be an object"),
    ({"rope_theta": "much"}, "rope_theta must be a number"),
    ({"rope_theta": 0.5}, "ROPE_BASE must be between"),
    ({"rms_norm_eps": 0.0}, "NORM_EPSILON must be between"),
    ({"rms_norm_eps": True}, "rms_norm_eps must be a number"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps is an integer beyond every float"),
    ({"rope_theta": 10**400}, "rope_theta is an integer beyond every float"),
    ({"rms_norm_eps": float("nan")}, "config.json"),
    ({"num_attention_heads": 0}, "NUM_HEADS must be between"),
    ({"num_key_value_heads": 3}, "not divisible by NUM_KV_HEADS"),
    ({"num_key_value_heads": 2.0}, "num_key_value_heads must be present, and an integer"),
    ({"head_dim": 7}, "HEAD_DIM 7 is odd"),
    ({"head_dim": 10}, r"blocks\.0\.q\.weight"),
    ({"intermediate_size": 25}, r"blocks\.0\.gate\.weight"),
    ({"intermediate_size": "absent"}, "intermediate_size must be present"),
    ({"num_hidden_layers": 1}, r"blocks\.1"),
    ({"num_hidden_layers": 3}, r"blocks\.2"),
    ({"max_position_embeddings": 0}, "MAX_SEQ_LEN must be between"),
    ({"tie_word_embeddings": 1}, "true or false"),
    ({"tie_word_embeddings": False}, "lm_head"),
])  # fmt: skip
def test_unsupported_settings_of_rotary_models_are_refused_by_name(
    tmp_path: Path, rotary: Path, changes: dict[str, Any], message: str
) -> None:
    assert_refused(rotary, changes, message, tmp_path / "back")


def test_qwen3_must_say_its_heads_and_reads_every_position(tmp_path: Path, bpe: ArabicTokenizer) -> None:
    export_transformers(build(tmp_path / "ours", bpe, **QWEN3), tmp_path / "checkpoint")
    config = tmp_path / "checkpoint" / "config.json"
    before = config.read_bytes()
    for changes, message in (
        ({"head_dim": "absent"}, "head_dim must be present"),
        ({"num_key_value_heads": None}, "num_key_value_heads must be present"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"layer_types": {"a": 1}}, "layer_types"),
    ):
        edit_json(config, **changes)
        with pytest.raises(PackageError, match=message):
            import_transformers(tmp_path / "checkpoint", tmp_path / "back")
        config.write_bytes(before)
    edit_json(config, layer_types=["full_attention", "full_attention"], sliding_window=None)
    import_transformers(tmp_path / "checkpoint", tmp_path / "back")
    assert same_weights(tmp_path / "ours", tmp_path / "back")


def test_a_shape_that_the_class_cannot_have_is_refused(tmp_path: Path, bpe: ArabicTokenizer) -> None:
    package = build(tmp_path / "ours", bpe, **{**LLAMA, "dim": 18})
    with pytest.raises(PackageError, match="DIM 18 to be a multiple of NUM_HEADS 4; export to safetensors"):
        export_transformers(package, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_old_and_new_spellings_of_llama(tmp_path: Path, bpe: ArabicTokenizer) -> None:
    shape = {**LLAMA, "num_kv_heads": 4, "head_dim": 4, "rope_base": 10_000.0, "norm_epsilon": 1e-6, "tied": False}
    export_transformers(build(tmp_path / "ours", bpe, **shape), tmp_path / "checkpoint")

    def age(state: dict[str, torch.Tensor]) -> None:
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)

    resave(tmp_path / "checkpoint", age)
    config = tmp_path / "checkpoint" / "config.json"
    edit_json(
        config, num_key_value_heads="absent", head_dim=None, rope_theta="absent", rms_norm_eps="absent",
        tie_word_embeddings="absent", architectures="absent",
        rope_parameters={"rope_type": "default", "rope_theta": 10_000},
    )  # fmt: skip
    import_transformers(tmp_path / "checkpoint", tmp_path / "new")
    edit_json(config, rope_parameters="absent")
    import_transformers(tmp_path / "checkpoint", tmp_path / "old")
    for back in ("new", "old"):
        assert same_weights(tmp_path / "ours", tmp_path / back)
        assert read(tmp_path / back).config == read(tmp_path / "ours").config


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_sharded_half_precision_of_rotary_models_is_imported_exactly(
    tmp_path: Path, rotary: Path, kind: torch.dtype
) -> None:
    hf_model(rotary).to(kind).save_pretrained(tmp_path / "half", max_shard_size="10KB")
    (rotary / "tokenizer.json").rename(tmp_path / "half" / "tokenizer.json")
    assert len(list((tmp_path / "half").glob("model-*.safetensors"))) > 1
    import_transformers(tmp_path / "half", tmp_path / "back")
    for name, tensor in read(tmp_path / "ours").weights.items():
        assert (torch.from_numpy(tensor).to(kind).float().numpy() == read(tmp_path / "back").weights[name]).all()


@given(
    vocab_size=st.integers(4, 60), width=st.integers(1, 24), kv_heads=st.integers(1, 3), group=st.integers(1, 3),
    half=st.integers(1, 6), layers=st.integers(1, 3), hidden=st.integers(1, 40), tied=st.booleans(),
    base=st.floats(1, 1e7), epsilon=st.sampled_from([1e-12, 1e-6, 1e-5, 0.1]), qk_norm=st.booleans(),
    length=st.integers(1, 20), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=examples(40))
def test_any_shape_gives_the_logits_of_transformers_in_torch_and_in_numpy(
    vocab_size: int, width: int, kv_heads: int, group: int, half: int, layers: int, hidden: int, tied: bool,
    base: float, epsilon: float, qk_norm: bool, length: int, seed: int,
) -> None:  # fmt: skip
    import transformers

    dim = width if qk_norm else width * kv_heads * group  # LlamaForCausalLM wants a multiple of the heads
    config = ModelConfig(
        vocab_size, dim, kv_heads * group, layers, 20, tied, "llama", num_kv_heads=kv_heads, head_dim=2 * half,
        hidden_dim=hidden, rope_base=base, norm_epsilon=epsilon, qk_norm=qk_norm,
    )  # fmt: skip
    layout, weights = layout_of(config), random_tensors(config.tensor_shapes(), seed)
    given_settings = {key: getattr(config, ours) for ours, key in layout.sizes.items()}
    given_settings |= {**layout.required, **layout.settings(config), "tie_word_embeddings": tied}
    assert layout.config_of(given_settings) == config
    kind = getattr(transformers, layout.architecture)
    theirs = kind(kind.config_class(**given_settings, pad_token_id=0, bos_token_id=2, eos_token_id=3)).eval()
    state = {name: torch.from_numpy(tensor) for name, tensor in layout.to_theirs(weights, config).items()}
    missing, unknown = theirs.load_state_dict(state, strict=False)
    assert (set(missing), unknown) == ({"lm_head.weight"} if tied else set(), [])
    theirs.tie_weights()
    ours = transformer(config, {name: torch.from_numpy(tensor) for name, tensor in weights.items()})
    ids = np.random.default_rng(seed).integers(0, vocab_size, (2, length))
    with torch.inference_mode():
        logits = ours(torch.from_numpy(ids))[0].numpy()
        scale = max(1.0, float(np.abs(logits).max()))
        assert np.abs(theirs(torch.from_numpy(ids)).logits.numpy() - logits).max() < 1e-5 * scale
        expected = ours.generate(torch.from_numpy(ids), 6, temperature=0)
    numpy = NumpyTransformer(config, weights)
    assert np.abs(numpy(ids)[0] - logits).max() < 1e-4 * scale
    assert numpy.generate(ids, 6, temperature=0).tolist() == expected.tolist()


def test_every_layout_names_the_tensors_of_its_class() -> None:
    """Names and shapes, without memory for values."""
    import transformers

    for shape in SHAPES.values():
        config = ModelConfig(vocab_size=30, dim=16, num_heads=4, num_layers=2, max_seq_len=40, **shape)
        layout = layout_of(config)
        weights = {name: np.broadcast_to(np.float32(0), size) for name, size in config.tensor_shapes().items()}
        theirs = layout.to_theirs(weights, config)
        given_settings = {key: getattr(config, ours) for ours, key in layout.sizes.items()}
        given_settings |= {**layout.required, **layout.settings(config), "tie_word_embeddings": config.tied}
        kind = getattr(transformers, layout.architecture)
        with torch.device("meta"):
            model = kind(kind.config_class(**given_settings, pad_token_id=0, bos_token_id=2, eos_token_id=3))
        expected = {key: tuple(tensor.shape) for key, tensor in model.named_parameters()}
        assert {key: tensor.shape for key, tensor in theirs.items()} == expected
    assert {type(layout_of(ModelConfig(30, 16, 4, 2, 40, **shape))) for shape in SHAPES.values()} == {
        type(layout) for layout in LAYOUTS
    }


def test_default_activation_is_that_of_gpt2(tmp_path: Path, checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", activation_function="absent")
    import_transformers(checkpoint, tmp_path / "back")
    assert read(tmp_path / "back").config.activation == "gelu_tanh"


def other_head(state: dict[str, torch.Tensor]) -> None:
    state["lm_head.weight"] = state["transformer.wte.weight"] + 1


def both_prefixes(state: dict[str, torch.Tensor]) -> None:
    state["wpe.weight"] = state["transformer.wpe.weight"].clone()


def not_transposed(state: dict[str, torch.Tensor]) -> None:
    state["transformer.h.0.mlp.c_fc.weight"] = state["transformer.h.0.mlp.c_fc.weight"].T


def infinite(state: dict[str, torch.Tensor]) -> None:
    state["transformer.ln_f.bias"][0] = torch.inf


def extra(state: dict[str, torch.Tensor]) -> None:
    state["transformer.h.0.attn.q_attn.weight\n\u202e"] = torch.ones(1)


def doubles(state: dict[str, torch.Tensor]) -> None:
    state["transformer.ln_f.bias"] = state["transformer.ln_f.bias"].double()


@pytest.mark.parametrize(("change", "message"), [
    (other_head, "a head of its own"), (both_prefixes, "with and without the prefix"), (not_transposed, "fc1.weight"),
    (infinite, "not finite"), (extra, r"q_attn\.weight\\n\\u202e' is not a tensor"), (doubles, "type F64"),
    (lambda state: state.pop("transformer.ln_f.bias"), '"ln_out.bias" is missing'),
    (lambda state: state.pop("transformer.wte.weight"), '"embedding.weight" is missing'),
    (lambda state: state.update({"transformer.lm_head.weight": torch.ones(1)}), "not a tensor of GPT2LMHeadModel"),
])  # fmt: skip
def test_invalid_tensors_are_refused_by_name(
    tmp_path: Path, checkpoint: Path, change: Callable[[Any], None], message: str
) -> None:
    resave(checkpoint, change)
    with pytest.raises(PackageError, match=message):
        import_transformers(checkpoint, tmp_path / "back")


def test_pickles_and_incomplete_files_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    weights_file = checkpoint / "model.safetensors"
    raw = weights_file.read_bytes()
    weights_file.write_bytes(raw[:-1])
    with pytest.raises(PackageError, match=r"^model\.safetensors: not a complete safetensors file"):
        import_transformers(checkpoint, tmp_path / "back")
    weights_file.write_bytes(struct.pack("<Q", 1 << 40) + raw[8:])
    with pytest.raises(PackageError, match="not a complete"):
        import_transformers(checkpoint, tmp_path / "back")
    for names, message in [
        (["pytorch_model.bin"], "save_pretrained"),
        ([], "no model.safetensors"),
        (["model-00001-of-00002.safetensors"], "missing"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00003.safetensors"], "missing, or of two models"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "also in an earlier file"),
        (["model-00000-of-99999.safetensors"], "missing"),
    ]:
        for path in checkpoint.glob("*model*"):
            path.unlink()
        for name in names:
            (checkpoint / name).write_bytes(raw)
        with pytest.raises(PackageError, match=message):
            import_transformers(checkpoint, tmp_path / "back")


def test_invalid_folders_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(PackageError, match="no such folder"):
        import_transformers(tmp_path / "nowhere", tmp_path / "back")
    with pytest.raises(PackageError, match="already a package of this project"):
        import_transformers(tmp_path / "ours", tmp_path / "back")
    with pytest.raises(PackageError, match="not an empty folder"):
        import_transformers(checkpoint, tmp_path / "ours")
    (checkpoint / "config.json").write_bytes(b"{\xff")
    with pytest.raises(PackageError, match=r"^config\.json:1: not UTF-8"):
        import_transformers(checkpoint, tmp_path / "back")
    (checkpoint / "config.json").unlink()
    os.mkfifo(checkpoint / "config.json")  # reading it would block
    with pytest.raises(PackageError, match="no such file"):
        import_transformers(checkpoint, tmp_path / "back")
