"""The demand forecaster: a small transformer over patches of the past and of the future asked for.

A patch is a week of days or a day of hours, counted back from the running bucket, so that the k-th bucket of every
patch has the same weekday or hour as step k. Tokens are the past patches, the future patches (with what is known
ahead of them) and one for the item and its running bucket; every token attends to every other; each future token
then spreads over its steps, where the step's own calendar and seasonal past join in.

What holds by construction, not by training:

* quantiles do not cross: they are running sums of positive increments around the median, put through increasing
functions;
* the first step's quantiles are `running` units plus a remainder of at least 0, and the remainder vanishes as the
bucket
  ends; quantiles may be exactly 0;
* cumulative quantiles never fall from step to step, and the first is the remainder of the running bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from transformers import PretrainedConfig, PreTrainedModel

from feature_store.features import FEATURE_INDEX
from forecaster import contract
from forecaster.models import normalise as n

_UNITS = FEATURE_INDEX["units"]
_MEDIAN = contract.QUANTILE_LEVELS.index(0.5)
_MAX_LOG = 7.0  # e^7 times an item's scale is beyond any demand, and far from overflow
_ALL = slice(None)


class Resolution(NamedTuple):
    """How one frequency is cut: buckets a patch, the seasonal distance of patches, scale's half-life and prior."""

    patch: int
    week: int
    half_life: float  # buckets
    prior: float  # units per bucket


RESOLUTIONS: dict[str, Resolution] = {
    "1h": Resolution(patch=24, week=7, half_life=168.0, prior=1 / 24),
    "1d": Resolution(patch=7, week=4, half_life=28.0, prior=1.0),
    "1w": Resolution(patch=4, week=13, half_life=13.0, prior=7.0),
}
_FREQ_BY_CODE = {contract.FREQ_CODES[freq]: freq for freq in RESOLUTIONS}


class FeaturesMismatchError(ValueError):
    """The weights were trained on other features than this code computes."""


class PatchTransformerConfig(PretrainedConfig):  # type: ignore[misc]
    """Sizes of the network, and the features it was trained on."""

    model_type = "shelfcast_patch_transformer"

    def __init__(  # noqa: PLR0913 - what config.json holds, by name
        self,
        width: int = 96,
        layers: int = 3,
        heads: int = 4,
        step_width: int = 48,
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


class Forecast(NamedTuple):
    """Outputs of the contract: (B, S, quantile), (B, S), (B, S, quantile), in units."""

    quantiles: Tensor
    mean: Tensor
    cumulative_quantiles: Tensor


class Scaled(NamedTuple):
    """What the losses are of: the same before clamping at 0, in scales of the item, without what is already
    observed."""

    quantiles: Tensor  # (B, S, quantile): of the bucket's units after the cutoff; below 0 means 0
    log_mean: Tensor  # (B, S): log of their mean
    cumulative_quantiles: Tensor  # (B, S, quantile): per step passed; the first is quantiles' first
    scale: Tensor  # (B, 1): units per bucket
    remainder: Tensor  # (B, 1): what the first step's values are multiplied by, 0 to 1
    burst: Tensor  # (B, 1): a typical bucket with sales, in scales: about 1 for busy items, large for intermittent ones


class _Block(nn.Module):
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


class _Tokens(nn.Module):
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

    def forward(self, past: Tensor, ahead: Tensor) -> Tensor:
        """Tokens of the patches, past then future, from channels: (B, L, PAST_WIDTH) and (B, S, KNOWN_WIDTH), S whole
        patches."""
        batch, patches = past.shape[0], len(self.past_place)  # not len(past): in a graph it is no number yet
        past_tokens = self.past(past.reshape(batch, patches, -1)) + self.past_place
        future_tokens = self.future(ahead.reshape(batch, -1, self.future.in_features))
        return torch.cat([past_tokens, future_tokens + self.future_place[: future_tokens.shape[1]]], dim=1)


class PatchTransformer(PreTrainedModel):  # type: ignore[misc]
    """See the module. `forward` returns the contract's outputs, `scaled` what training needs."""

    config_class = PatchTransformerConfig
    base_model_prefix = "patch_transformer"
    main_input_name = "context"

    def __init__(self, config: PatchTransformerConfig) -> None:
        """Raises FeaturesMismatchError where config.features_hash is not this code's."""
        expected = contract.features_hash(config.covariates)
        if config.features_hash != expected:
            raise FeaturesMismatchError(
                f"these weights were trained on features {config.features_hash}, this code computes "
                f"{expected}: train them anew, or serve them with the release that made them"
            )
        super().__init__(config)
        # Of the blocks' matrix products, where nine tenths of the work is. What they are added to, the features before
        # and the heads after stay float32: a quantile is an exponential, which no eight bits are enough for.
        self.product_type = torch.float32
        width, step_width, levels = config.width, config.step_width, len(contract.QUANTILE_LEVELS)
        windows = contract.WINDOWS
        self.tokens = nn.ModuleDict({freq: _Tokens(RESOLUTIONS[freq], windows[freq], config) for freq in config.freqs})
        self.clock = nn.Linear(n.CLOCK_WIDTH, width)
        # One embedding a code. They begin at zero, and stay there for weights whose training data names no
        # categories, so that a code that was never learnt says nothing.
        self.category = nn.Embedding(1024, width)
        self.brand = nn.Embedding(1024, width)
        self.item = nn.Linear(n.ITEM_WIDTH + n.RUNNING_WIDTH, width)
        self.blocks = nn.ModuleList([_Block(width, config.heads) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(width)
        self.step_inputs = nn.Linear(n.KNOWN_WIDTH + n.CLOCK_WIDTH + 6 + n.ITEM_WIDTH, step_width)
        self.first_step = nn.Linear(n.RUNNING_WIDTH + n.ITEM_WIDTH, step_width)
        self.step_hidden = nn.Linear(step_width, 2 * step_width)
        self.outputs = nn.Linear(2 * step_width, 2 * levels)
        self.mean_head = nn.Sequential(nn.Linear(2 * step_width, step_width), nn.GELU(), nn.Linear(step_width, 1))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.zeros_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(  # noqa: PLR0913 - the contract's tensors, by name
        self,
        context: Tensor,
        available_fraction: Tensor,
        known: Tensor,
        running: Tensor,
        elapsed_fraction: Tensor,
        static: Tensor,
        freq: Tensor,
    ) -> Forecast:
        """Forecast of the items of one frequency; inputs as in contract.INPUTS with the item axis first."""
        name = self._one_freq(freq, context)
        return self.of_freq(name, context, available_fraction, known, running, elapsed_fraction, static)

    def of_freq(  # noqa: PLR0913 - the contract's tensors, by name
        self,
        name: str,
        context: Tensor,
        available_fraction: Tensor,
        known: Tensor,
        running: Tensor,
        elapsed_fraction: Tensor,
        static: Tensor,
    ) -> Forecast:
        """`forward` with the frequency known: no value of a tensor decides what is computed, so it can be a graph."""
        scaled = self._scaled(name, context, available_fraction, known, running, elapsed_fraction, static)
        steps = known.shape[1] - context.shape[1]
        first = torch.ones(steps, device=known.device)
        first[1:] = 0
        share = 1 + first * (scaled.remainder - 1)
        observed = first * torch.nan_to_num(running[:, _UNITS, None])
        scale = scaled.scale
        passed = torch.arange(1, steps + 1, device=known.device)
        quantiles = (scaled.quantiles.clamp_min(0) * scale[:, :, None]) * share[:, :, None]
        cumulative = scaled.cumulative_quantiles.clamp_min(0) * scale[:, :, None] * passed[:, None]
        cumulative = _running_max(torch.cat([quantiles[:, :1], cumulative[:, 1:]], dim=1))
        mean = torch.exp(scaled.log_mean) * scale * share
        return Forecast(quantiles + observed[:, :, None], mean + observed, cumulative)

    def scaled(  # noqa: PLR0913 - the contract's tensors, by name
        self,
        context: Tensor,
        available_fraction: Tensor,
        known: Tensor,
        running: Tensor,
        elapsed_fraction: Tensor,
        static: Tensor,
        freq: Tensor,
    ) -> Scaled:
        """Forecast in scales of the items, as `forward`."""
        name = self._one_freq(freq, context)
        return self._scaled(name, context, available_fraction, known, running, elapsed_fraction, static)

    def _scaled(  # noqa: PLR0913 - the contract's tensors, by name
        self,
        name: str,
        context: Tensor,
        available_fraction: Tensor,
        known: Tensor,
        running: Tensor,
        elapsed_fraction: Tensor,
        static: Tensor,
    ) -> Scaled:
        cut, embed = RESOLUTIONS[name], cast(_Tokens, self.tokens[name])
        length, steps = context.shape[1], known.shape[1] - context.shape[1]
        running, elapsed = torch.nan_to_num(running), torch.nan_to_num(elapsed_fraction).clamp(0, 1)
        scale = n.scales(context, running, elapsed, cut.half_life, cut.prior)
        announced, clock = n.known_features(known, scale), n.clock_features(known[:, length:])
        item = n.item_features(context, static[:, :1], scale)
        now = n.running_features(running, elapsed, scale)
        futures = -(-steps // cut.patch)

        past = n.past_features(context, available_fraction, announced[:, :length], scale)
        ahead = F.pad(announced[:, length:], (0, 0, 0, futures * cut.patch - steps))
        patches = embed(past, ahead) + self.clock(n.clock_features(known[:, :: cut.patch]))
        item_token = self.item(torch.cat([item, now], dim=-1)) + embed.item_place + self._named(static)
        tokens = torch.cat([patches, item_token[:, None]], dim=1)
        spread = embed.spread(self.norm(self._attended(tokens, futures))).reshape(
            past.shape[0], futures * cut.patch, -1
        )

        season = n.seasonal_features(context, cut.patch, cut.week, futures, scale)[:, :steps]
        own = [announced[:, length:], clock, season, item[:, None].expand(-1, steps, -1)]
        hidden = spread[:, :steps] + self.step_inputs(torch.cat(own, dim=-1))
        first = self.first_step(torch.cat([now, item], dim=-1))
        hidden = torch.cat([hidden[:, :1] + first[:, None], hidden[:, 1:]], dim=1)
        hidden = F.gelu(self.step_hidden(F.gelu(hidden)))
        out = self.outputs(hidden)
        # Detached: the mean of heavy tails has gradients as heavy, which would toss about what the quantiles rest on.
        log_mean = self.mean_head(hidden.detach())[..., 0].clamp(-_MAX_LOG, _MAX_LOG)
        levels = len(contract.QUANTILE_LEVELS)
        quantiles = _quantiles(out[..., :levels])
        cumulative = torch.cat([quantiles[:, :1], _quantiles(out[:, 1:, levels:])], dim=1)
        # Ends at 0 with the bucket; before its last quarter it leaves the network alone.
        remainder = (4 * (1 - elapsed)).clamp(0, 1)
        return Scaled(
            quantiles,
            log_mean,
            cumulative,
            scale.units,
            remainder,
            scale.typical / scale.units,
        )

    def _attended(self, tokens: Tensor, futures: int) -> Tensor:
        """The future's tokens after all blocks, float32: (B, futures, width)."""
        products: AbstractContextManager[Any] = nullcontext()
        if self.product_type != torch.float32:
            products = torch.autocast(tokens.device.type, self.product_type, cache_enabled=False)
        with products:
            for block in self.blocks[:-1]:
                tokens = block(tokens)
            tokens = self.blocks[-1](tokens, slice(-futures - 1, -1))  # nothing else is read
        return tokens.float()

    def _named(self, static: Tensor) -> Tensor:
        codes = torch.nan_to_num(static[:, 1:]).long().clamp(0, 1023)
        named: Tensor = self.category(codes[:, 0]) + self.brand(codes[:, 1])
        return named

    def _one_freq(self, freq: Tensor, context: Tensor) -> str:
        codes = set(freq.flatten().tolist())
        if len(codes) != 1:
            raise ValueError(f"one pass is of one freq, these rows have codes {sorted(codes)}")
        name = _FREQ_BY_CODE.get(int(codes.pop()))
        if name not in self.config.freqs:
            raise ValueError(f"this model forecasts {self.config.freqs}, not the freq with code {freq.flatten()[0]}")
        length = contract.WINDOWS[name].context_length
        if context.shape[1] != length:
            raise ValueError(f"context of {name} has {length} buckets, not {context.shape[1]}")
        return name


def _quantiles(raw: Tensor) -> Tensor:
    """Ascending values of any sign from raw outputs (…, quantile): the median, and positive steps away from it."""
    middle = raw[..., _MEDIAN : _MEDIAN + 1]
    steps = F.softplus(raw - 2.0)
    above = middle + steps[..., _MEDIAN + 1 :].cumsum(-1)
    below = middle - steps[..., :_MEDIAN].flip(-1).cumsum(-1).flip(-1)
    log = torch.cat([below, middle, above], dim=-1).clamp_max(_MAX_LOG)
    # e^x - 1 above 0, where demand is skewed; straight below, where all that counts is being below.
    return torch.where(log > 0, torch.expm1(log.clamp_min(0)), log)


def _running_max(values: Tensor) -> Tensor:
    """The greatest value up to each step: (B, S, quantile), none below 0."""
    if not torch.compiler.is_exporting():
        return values.cummax(dim=1).values
    # ONNX has no such operation: every step beside all up to it.
    steps = torch.arange(values.shape[1], device=values.device)
    so_far = (steps[None, :] <= steps[:, None]).to(values.dtype)
    return (values[:, None] * so_far[:, :, None]).amax(dim=2)


def load(folder: Path) -> PatchTransformer:
    """The model of a folder with config.json and model.safetensors, ready to forecast, on the CPU.

    Raises:
        OSError: the folder holds no model.
        FeaturesMismatchError: it was trained on other features than this code computes.
        ValueError: its weights are not this network's.
    """
    config = PatchTransformerConfig.from_pretrained(folder, local_files_only=True)
    model = PatchTransformer(config)
    # Not from_pretrained, which makes up what a file lacks and only warns; strict loading raises.
    try:
        load_model(model, folder / "model.safetensors", strict=True)
    except RuntimeError as error:
        raise ValueError(f"{folder} holds weights of another network: {error}") from error
    model.eval()
    return model


def parameter_count(model: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters())
