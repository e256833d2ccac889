"""The original Al-Qalam transformer in torch: forward pass, loss, generation, and nothing else.
Takes token ids, gives logits; a package carries this very file, so it imports nothing but torch.
It does not know tokenizers, files or training.

Shapes: B batch, T time, C channels (dim), H heads, D head dim, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

END = 3  # the id of <END> in every vocabulary of this project

GELUS = {"gelu": "none", "gelu_tanh": "tanh"}
"""Activation -> what torch calls it: the exact GELU, or the one by tanh that GPT-2 was trained with."""


class Block(nn.Module):
    """One pre-LayerNorm block: causal self-attention, then a GELU feed-forward, both residual."""

    def __init__(self, dim: int, num_heads: int, dropout: float, approximate: str = "none") -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.approximate = approximate
        self.ln1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.ln2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        B, T, C = x_BTC.shape
        dropout = self.dropout if self.training else 0.0
        qkv_BT3HD = self.qkv(self.ln1(x_BTC)).view(B, T, 3, self.num_heads, C // self.num_heads)
        q_BHTD, k_BHTD, v_BHTD = qkv_BT3HD.permute(2, 0, 3, 1, 4)
        mix_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, dropout_p=dropout, is_causal=True)
        mix_BTC = self.out(mix_BHTD.transpose(1, 2).reshape(B, T, C))
        x_BTC = x_BTC + F.dropout(mix_BTC, dropout)
        hidden_BTC = self.fc2(F.gelu(self.fc1(self.ln2(x_BTC)), approximate=self.approximate))
        return x_BTC + F.dropout(hidden_BTC, dropout)


class PureDynamicTransformer(nn.Module):
    """Token + learned position embeddings, `num_layers` blocks, final LayerNorm, LM head (tied or not)."""

    def __init__(
        self,
        vocab_size: int = 32000,
        dim: int = 256,
        num_heads: int = 8,
        num_layers: int = 6,
        max_seq_len: int = 512,
        dropout: float = 0.1,
        tied: bool = True,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        if activation not in GELUS:
            raise ValueError(f'activation "{activation}": known are {", ".join(GELUS)}')
        self.vocab_size = vocab_size
        self.dim = dim
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.max_seq_len = max_seq_len
        self.dropout = dropout
        self.tied = tied
        self.activation = activation
        self.embedding = nn.Embedding(vocab_size, dim)
        self.pos_embedding = nn.Parameter(torch.empty(max_seq_len, dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads, dropout, GELUS[activation]) for _ in range(num_layers))
        self.ln_out = nn.LayerNorm(dim)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        if tied:
            self.lm_head.weight = self.embedding.weight
        self._initialise()

    def _initialise(self) -> None:
        """Normal(0, 0.02), biases zero; the projections back into the residual stream are scaled by
        1/sqrt(2 L), so that the stream's variance does not grow with depth (GPT-2, section 2.3)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                continue  # LayerNorm keeps ones and zeros; Linear biases are zeroed below
            residual = name.endswith(("out.weight", "fc2.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.num_layers) if residual else 0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def features(self, ids_BT: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, C) normalised features, one matrix product away from logits."""
        T = ids_BT.shape[1]
        if self.max_seq_len < T:
            raise ValueError(f"{T} tokens, but the model's context is {self.max_seq_len}")
        x_BTC = self.embedding(ids_BT) + self.pos_embedding[:T]
        x_BTC = F.dropout(x_BTC, self.dropout if self.training else 0.0)
        for block in self.blocks:
            x_BTC = block(x_BTC)
        normalised: Tensor = self.ln_out(x_BTC)
        return normalised

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, T) ids, and optionally (B, T) labels -> (B, T, V) logits and the mean loss in nats.

        `labels[b, t]` is the token that follows `input_ids[b, t]`: whoever cuts the batch shifts it,
        once; nothing is shifted here. Label -100 is not counted.
        """
        logits_BTV = self.lm_head(self.features(input_ids))
        if labels is None:
            return logits_BTV, None
        loss = F.cross_entropy(logits_BTV.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
        return logits_BTV, loss

    def count_parameters(self) -> int:
        """Trainable parameters; a tied head is counted once."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @torch.no_grad()
    def generate(
        self,
        prompt_ids: Tensor,
        max_new_tokens: int = 50,
        temperature: float = 0.8,
        top_k: int = 50,
        seed: int | None = None,
        top_p: float = 1.0,
    ) -> Tensor:
        """Continue a (B, T) batch of prompts, T >= 1, to (B, T + n), n <= `max_new_tokens`.

        Stops early when every row has produced <END>; a finished row is filled with <END>.
        `temperature=0` is greedy; `top_k=0` samples from all of V; below 1, `top_p` samples from the fewest
        tokens that hold this share of the probability; `seed` makes sampling repeatable.
        """
        if prompt_ids.shape[1] == 0:
            raise ValueError("the prompt has no tokens; start from <START>, id 2")
        was_training = self.training
        self.eval()
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        ids_BT = prompt_ids.to(self.device)
        done_B = torch.zeros(ids_BT.shape[0], dtype=torch.bool, device=self.device)
        for _ in range(max_new_tokens):
            features_BC = self.features(ids_BT[:, -self.max_seq_len :])[:, -1]
            next_B = _sample(self.lm_head(features_BC).float(), temperature, top_k, top_p, generator)
            next_B = next_B.masked_fill(done_B, END)
            ids_BT = torch.cat([ids_BT, next_B[:, None]], dim=1)
            done_B |= next_B == END
            if bool(done_B.all()):
                break
        self.train(was_training)
        return ids_BT


def _sample(
    logits_BV: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> Tensor:
    if temperature == 0:
        return logits_BV.argmax(-1)
    if 0 < top_k < logits_BV.shape[-1]:
        kth_B1 = logits_BV.topk(top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)
    probabilities_BV = torch.softmax(logits_BV / temperature, dim=-1)
    if top_p < 1:
        ranked_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True, stable=True)
        ranked_BV = ranked_BV.masked_fill(ranked_BV.cumsum(-1) - ranked_BV >= top_p, 0.0)  # the first one always stays
        probabilities_BV = torch.zeros_like(ranked_BV).scatter(-1, order_BV, ranked_BV)
    return torch.multinomial(probabilities_BV, 1, generator=generator)[:, 0]
