"""The layers of the patch transformer, and its config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from transformers import PretrainedConfig

from forecaster import contract
from forecaster.models import normalise as n
from forecaster.models.normalise import Resolution

_ALL = slice(None)


class PatchTransformerConfig(PretrainedConfig):  # type: ignore[misc]
    """Sizes of the network, and the features it was trained on."""

    model_type = "shelfcast_patch_transformer"

    def __init__(  # noqa: PLR0913 - what config.json holds, by name
        self,
        width: int = 128,
        layers: int = 3,
        heads: int = 4,
        step_width: int = 64,
        freqs: Sequence[str] = ("1h", "1d"),
        past_covariates: Sequence[str] = (),
        known_covariates: Sequence[str] = (),
        features_hash: str = "",
        **kwargs: Any,
    ) -> None:
        self.freqs = list(freqs)
        self.past_covariates = list(past_covariates)
        self.known_covariates = list(known_covariates)
        self.width = width
        self.layers = layers
        self.heads = heads
        self.step_width = step_width
        self.features_hash = features_hash or contract.features_hash(self.covariates)
        super().__init__(**kwargs)

    @property
    def covariates(self) -> contract.Covariates:
        """Channels beyond the worker's own."""
        return contract.Covariates(tuple(self.past_covariates), tuple(self.known_covariates))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 2 * width)
        self.mlp_out = nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor, wanted: slice = _ALL) -> Tensor:
        """What becomes of the tokens `wanted`, every token attended to: (B, token, width)."""
        normed = self.attention_norm(tokens)
        if wanted == _ALL:
            query, key, value = self._heads(self.query_key_value(normed), 3)
        else:  # a third of a block's work is for keys and values; the rest is for those who ask
            width = tokens.shape[-1]
            weight, bias = self.query_key_value.weight, self.query_key_value.bias
            (query,) = self._heads(F.linear(normed[:, wanted], weight[:width], bias[:width]), 1)
            key, value = self._heads(F.linear(normed, weight[width:], bias[width:]), 2)
            tokens = tokens[:, wanted]
        tokens = tokens + self.attention_out(_attend(query, key, value).transpose(1, 2).reshape(tokens.shape))
        hidden = F.gelu(self.mlp_in(self.mlp_norm(tokens)))
        out: Tensor = tokens + self.mlp_out(hidden)
        return out

    def _heads(self, values: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, token, parts * width) as `parts` of (B, head, token, width of a head)."""
        batch, length, _ = values.shape
        return values.view(batch, length, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of every token to every other. On a CPU two matrix products are faster than the fused kernel, which is
    made for hundreds of tokens; for a GPU it is the other way round."""
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value)
    weights = torch.softmax(query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1), dim=-1)
    return weights @ value


class Tokens(nn.Module):
    """Embeds patches of one frequency, and spreads future tokens over their steps."""

    def __init__(self, resolution: Resolution, window: contract.Window, config: PatchTransformerConfig) -> None:
        super().__init__()
        patch, width = resolution.patch, config.width
        patches = window.context_length // patch
        past_more, known_more = len(config.past_covariates), len(config.known_covariates)
        self.past = nn.Linear(patch * (n.PAST_WIDTH + 2 * (past_more + known_more)), width)
        self.future = nn.Linear(patch * (n.KNOWN_WIDTH + 2 * known_more), width)
        self.past_place = nn.Parameter(torch.randn(patches, width) * 0.02)
        futures = max(-(-window.max_prediction_length // patch), 4)
        self.future_place = nn.Parameter(torch.randn(futures, width) * 0.02)
        self.item_place = nn.Parameter(torch.randn(1, width) * 0.02)
        self.spread = nn.Linear(width, patch * config.step_width)
        own = n.KNOWN_WIDTH + 2 * known_more + n.CLOCK_WIDTH + n.season_width(resolution) + n.ITEM_WIDTH
        self.step_inputs = nn.Linear(own, config.step_width)

    def forward(self, past: Tensor, ahead: Tensor) -> Tensor:
        """Tokens of the patches, past then future, from channels: (B, L, PAST_WIDTH) and (B, S, KNOWN_WIDTH), S whole
        patches."""
        batch, patches = past.shape[0], len(self.past_place)  # not len(past): in a graph it is no number yet
        past_tokens = self.past(past.reshape(batch, patches, -1)) + self.past_place
        future_tokens = self.future(ahead.reshape(batch, -1, self.future.in_features))
        return torch.cat([past_tokens, future_tokens + self.future_place[: future_tokens.shape[1]]], dim=1)
