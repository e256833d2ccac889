from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from qalam_core import model as module
from qalam_core.model import END, PureDynamicTransformer

SHAPE: dict[str, Any] = {"vocab_size": 50, "dim": 16, "num_heads": 2, "num_layers": 2, "max_seq_len": 12}


@pytest.fixture
def model() -> PureDynamicTransformer:
    torch.manual_seed(0)
    return PureDynamicTransformer(**SHAPE, dropout=0.0).eval()


def test_the_model_imports_only_torch() -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} == {"__future__", "math", "torch"}


def test_the_forward_pass_equals_the_formula(model: PureDynamicTransformer) -> None:
    """Compare explicit attention with the fused implementation."""
    ids = torch.randint(0, 50, (2, 7))
    x = model.embedding.weight[ids] + model.pos_embedding[:7]
    mask = torch.full((7, 7), -torch.inf).triu(1)
    blocks: Any = model.blocks
    for block in blocks:
        q, k, v = (part.view(2, 7, 2, 8).transpose(1, 2) for part in block.qkv(block.ln1(x)).split(16, dim=-1))
        weights = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5 + mask, dim=-1)
        x = x + block.out((weights @ v).transpose(1, 2).reshape(2, 7, 16))
        x = x + block.fc2(F.gelu(block.fc1(block.ln2(x))))
    expected = model.ln_out(x) @ model.lm_head.weight.T
    assert torch.allclose(model(ids)[0], expected, atol=1e-5)


def test_attention_is_causal(model: PureDynamicTransformer) -> None:
    ids = torch.randint(0, 50, (1, 8))
    changed = ids.clone()
    changed[0, 5:] = (changed[0, 5:] + 1) % 50
    assert torch.equal(model(ids)[0][:, :5], model(changed)[0][:, :5])


def test_the_loss_does_not_shift_labels(model: PureDynamicTransformer) -> None:
    ids, labels = torch.randint(0, 50, (2, 2, 6))
    logits, loss = model(ids, labels)
    assert loss is not None
    assert torch.allclose(loss, F.cross_entropy(logits.reshape(-1, 50), labels.reshape(-1)))
    labels[0, :3] = -100
    _, masked = model(ids, labels)
    kept = labels.reshape(-1) != -100
    assert masked is not None
    assert torch.allclose(masked, F.cross_entropy(logits.reshape(-1, 50)[kept], labels.reshape(-1)[kept]))


def test_count_parameters_by_hand() -> None:
    vocab, dim, layers, context = 50, 16, 2, 12
    block = (
        2 * 2 * dim + (3 * dim * dim + 3 * dim) + (dim * dim + dim) + (4 * dim * dim + 4 * dim) + (4 * dim * dim + dim)
    )
    tied = vocab * dim + context * dim + layers * block + 2 * dim
    assert PureDynamicTransformer(**SHAPE).count_parameters() == tied
    assert PureDynamicTransformer(**SHAPE, tied=False).count_parameters() == tied + vocab * dim


def test_initialisation_scales_with_depth() -> None:
    torch.manual_seed(0)
    deep = PureDynamicTransformer(vocab_size=100, dim=128, num_heads=4, num_layers=8, max_seq_len=8)
    block: Any = deep.blocks[0]
    assert block.fc2.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert deep.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not block.qkv.bias.any()


def test_dropout_only_while_training() -> None:
    torch.manual_seed(0)
    model = PureDynamicTransformer(**SHAPE, dropout=0.5)
    ids = torch.randint(0, 50, (1, 8))
    assert not torch.equal(model(ids)[0], model(ids)[0])
    model.eval()
    assert torch.equal(model(ids)[0], model(ids)[0])


def test_greedy_generation_takes_the_likeliest_token(model: PureDynamicTransformer) -> None:
    prompt = torch.randint(4, 50, (2, 3))
    ids = prompt
    generated = model.generate(prompt, max_new_tokens=15, temperature=0)
    for _ in range(15):
        ids = torch.cat([ids, model(ids[:, -12:])[0][:, -1].argmax(-1, keepdim=True)], dim=1)
    width = generated.shape[1]
    for row, expected in zip(generated.tolist(), ids[:, :width].tolist(), strict=True):
        stop = expected.index(END) if END in expected else width
        assert row[:stop] == expected[:stop]
        assert set(row[stop:]) <= {END}


def test_generation_stops_at_the_end_token(model: PureDynamicTransformer) -> None:
    with torch.no_grad():
        model.ln_out.weight.zero_()
        model.ln_out.bias.copy_(model.embedding.weight[END] * 1000)
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=9, temperature=0).tolist() == [[5, 6, END]]


def test_sampling_is_repeatable_and_top_k_is_respected(model: PureDynamicTransformer) -> None:
    prompt = torch.tensor([[5]])
    one, two = (model.generate(prompt, 10, temperature=2.0, seed=3) for _ in range(2))
    assert torch.equal(one, two)
    greedy = model.generate(prompt, 10, temperature=0)
    assert torch.equal(model.generate(prompt, 10, temperature=5.0, top_k=1), greedy)


def test_top_p_keeps_the_fewest_tokens_with_the_probability() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.05, 0.3, 0.05]]))
    generator = torch.Generator().manual_seed(0)
    for share, allowed in ((0.01, {1}), (0.49, {1}), (0.51, {1, 3}), (0.85, {0, 1, 3}), (1.0, {0, 1, 2, 3, 4})):
        drawn = {module._sample(logits, 1.0, 0, share, generator).item() for _ in range(300)}
        assert drawn == allowed, share


def test_generation_restores_the_training_mode(model: PureDynamicTransformer) -> None:
    model.train()
    model.generate(torch.tensor([[5]]), 1)
    assert model.training


def test_invalid_calls_are_refused(model: PureDynamicTransformer) -> None:
    with pytest.raises(ValueError, match="not divisible"):
        PureDynamicTransformer(dim=10, num_heads=3)
    with pytest.raises(ValueError, match="context is 12"):
        model(torch.zeros((1, 13), dtype=torch.long))
    with pytest.raises(ValueError, match="no tokens"):
        model.generate(torch.zeros((1, 0), dtype=torch.long))


def uncached(model: PureDynamicTransformer, prompt_BT: torch.Tensor, new: int) -> torch.Tensor:
    ids = prompt_BT
    for _ in range(new):
        ids = torch.cat([ids, model(ids[:, -model.max_seq_len :])[0][:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids


@pytest.mark.parametrize("length", [1, 5, 11, 12, 13, 20])
def test_the_cache_does_not_change_tokens(model: PureDynamicTransformer, length: int) -> None:
    """For batches of prompts shorter than, equal to and longer than the context of 12."""
    blocks: Any = model.blocks
    with torch.no_grad():
        for block in blocks:  # sharper than at the start, so that every position matters
            block.qkv.weight.mul_(20)
            block.fc1.weight.mul_(20)
        model.embedding.weight[END].zero_()  # never the likeliest
    torch.manual_seed(length)
    prompt = torch.randint(4, 50, (16, length))
    generated = model.generate(prompt, max_new_tokens=18, temperature=0)
    assert len(generated.unique(dim=0)) > 8
    assert torch.equal(generated, uncached(model, prompt, 18)[:, : generated.shape[1]])


def test_a_row_does_not_depend_on_its_neighbours(model: PureDynamicTransformer) -> None:
    prompt = torch.randint(4, 50, (6, 4))
    together = model.generate(prompt, max_new_tokens=12, temperature=0)
    for row, expected in zip(prompt, together, strict=True):
        alone = model.generate(row[None], max_new_tokens=12, temperature=0)[0]
        assert torch.equal(alone, expected[: len(alone)])


def test_each_token_is_computed_once(model: PureDynamicTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    features = model.features

    def counted(ids_BT: torch.Tensor, *rest: Any) -> torch.Tensor:
        read.append(ids_BT.shape[1])
        return features(ids_BT, *rest)

    monkeypatch.setattr(model, "features", counted)
    with torch.no_grad():
        model.embedding.weight[END].zero_()
    model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8, temperature=0)
    assert read == [3, 1, 1, 1, 1, 1, 1, 1]
