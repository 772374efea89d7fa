"""The demand forecaster: a small transformer over patches of the past and of the future asked for.

A patch is two weeks of days, a day of hours or four weeks, counted back from the running bucket, so that the k-th
bucket of every patch has the same weekday or hour as step k. Tokens are the past patches, the future patches (with what
is known ahead of them) and one for the item and its running bucket; every token attends to every other; each future
token then spreads over its steps, where the step's own calendar and seasonal past join in.

What holds by construction, not by training:

* quantiles do not cross: they are running sums of positive increments around the median, put through increasing
  functions;
* the first step's quantiles are `running` units plus a remainder of at least 0, and the remainder vanishes as the
  bucket ends; quantiles may be exactly 0, and are whole where an item sells whole units;
* cumulative quantiles never fall from step to step, and the first is the remainder of the running bucket.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from transformers import PreTrainedModel

from feature_store.features import FEATURE_INDEX
from feature_store.known_future import KNOWN_CHANNELS
from forecaster import contract
from forecaster.models import normalise as n
from forecaster.models.normalise import RESOLUTIONS
from forecaster.models.patch_layers import Block, PatchTransformerConfig, Tokens

_UNITS = FEATURE_INDEX["units"]
_MEDIAN = contract.QUANTILE_LEVELS.index(0.5)
_MAX_LOG = 7.0  # e^7 times an item's scale is beyond any demand, and far from overflow
_FREQ_BY_CODE = {contract.FREQ_CODES[freq]: freq for freq in RESOLUTIONS}


class FeaturesMismatchError(ValueError):
    """The weights were trained on other features than this code computes."""


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
    error: Tensor  # (B, 1): the seasonal naive's mean absolute error, in scales; 0 = not known


class PatchTransformer(PreTrainedModel):  # type: ignore[misc]
    """See the module. `forward` returns the contract's outputs, `scaled` what training needs."""

    config_class = PatchTransformerConfig
    base_model_prefix = "patch_transformer"
    main_input_name = "context"
    loss_function = None  # transformers' own looks for a language model's and says so

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
        self.tokens = nn.ModuleDict({freq: Tokens(RESOLUTIONS[freq], windows[freq], config) for freq in config.freqs})
        self.clock = nn.Linear(n.CLOCK_WIDTH, width)
        # One embedding a code. They begin at zero, and stay there for weights whose training data names no
        # categories, so that a code that was never learnt says nothing.
        self.category = nn.Embedding(1024, width)
        self.brand = nn.Embedding(1024, width)
        self.item = nn.Linear(n.ITEM_WIDTH + n.RUNNING_WIDTH, width)
        self.blocks = nn.ModuleList([Block(width, config.heads) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(width)
        self.first_step = nn.Linear(n.RUNNING_WIDTH + n.ITEM_WIDTH, step_width)
        self.step_hidden = nn.Linear(step_width, 2 * step_width)
        self.outputs = nn.Linear(2 * step_width, 2 * levels)
        self.mean_head = nn.Sequential(nn.Linear(2 * step_width + 1, step_width), nn.GELU(), nn.Linear(step_width, 1))
        for kind, names in (("past", config.past_covariates), ("known", config.known_covariates)):
            self.register_buffer(f"{kind}_mean", torch.zeros(len(names)))
            self.register_buffer(f"{kind}_deviation", torch.ones(len(names)))
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
        whole = _sells_whole_units(context, running)
        quantiles = _rounded((scaled.quantiles.clamp_min(0) * scale[:, :, None]) * share[:, :, None], whole)
        cumulative = _rounded(scaled.cumulative_quantiles.clamp_min(0) * scale[:, :, None] * passed[:, None], whole)
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
        cut, embed = RESOLUTIONS[name], cast(Tokens, self.tokens[name])
        length, steps = context.shape[1], known.shape[1] - context.shape[1]
        running, elapsed = torch.nan_to_num(running), torch.nan_to_num(elapsed_fraction).clamp(0, 1)
        scale = n.scales(context, known[:, :length, 0], running, elapsed, cut)
        clock = n.clock_features(known[:, length:])
        announced = torch.cat([n.known_features(known, scale), self._known_covariates(known)], dim=-1)
        item = n.item_features(context, static[:, :1], scale)
        now = n.running_features(running, elapsed, scale)
        futures = -(-steps // cut.patch)

        past = n.past_features(context, available_fraction, announced[:, :length], scale)
        past = torch.cat([past, self._past_covariates(context), announced[:, :length, n.KNOWN_WIDTH :]], dim=-1)
        ahead = F.pad(announced[:, length:], (0, 0, 0, futures * cut.patch - steps))
        patches = embed(past, ahead) + self.clock(n.clock_features(known[:, :: cut.patch]))
        item_token = self.item(torch.cat([item, now], dim=-1)) + embed.item_place + self._named(static)
        tokens = torch.cat([patches, item_token[:, None]], dim=1)
        spread = embed.spread(self.norm(self._attended(tokens, futures))).reshape(
            past.shape[0], futures * cut.patch, -1
        )

        season = n.seasonal_features(context, cut, steps, scale)
        own = [announced[:, length:], clock, season, item[:, None].expand(-1, steps, -1)]
        hidden = spread[:, :steps] + embed.step_inputs(torch.cat(own, dim=-1))
        first = self.first_step(torch.cat([now, item], dim=-1))
        hidden = torch.cat([hidden[:, :1] + first[:, None], hidden[:, 1:]], dim=1)
        hidden = F.gelu(self.step_hidden(F.gelu(hidden)))
        out = self.outputs(hidden)
        levels = len(contract.QUANTILE_LEVELS)
        quantiles = _quantiles(out[..., :levels])
        cumulative = torch.cat([quantiles[:, :1], _quantiles(out[:, 1:, levels:])], dim=1)
        # Ends at 0 with the bucket; before its last quarter it leaves the network alone.
        remainder = (4 * (1 - elapsed)).clamp(0, 1)
        return Scaled(
            quantiles,
            self._log_mean(hidden, quantiles),
            cumulative,
            scale.units,
            remainder,
            scale.typical / scale.units,
            scale.error / scale.units,
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

    def _log_mean(self, hidden: Tensor, quantiles: Tensor) -> Tensor:
        """Log of the mean: of the quantiles' own, and what the network puts beside it. Nothing of it reaches what the
        quantiles rest on: the mean of heavy tails has gradients as heavy."""
        middle = (quantiles[..., 1:] + quantiles[..., :-1]).clamp_min(0).detach() / 2
        levels = torch.tensor(contract.QUANTILE_LEVELS, device=hidden.device, dtype=hidden.dtype)
        rough = torch.log((middle * (levels[1:] - levels[:-1])).sum(-1, keepdim=True) + 1e-2)
        correction: Tensor = self.mean_head(torch.cat([hidden.detach(), rough], dim=-1))
        return (rough + correction)[..., 0].clamp(-_MAX_LOG, _MAX_LOG)

    def _known_covariates(self, known: Tensor) -> Tensor:
        more = known[:, :, len(KNOWN_CHANNELS) :]
        return n.covariate_features(more, self.known_mean, self.known_deviation)

    def _past_covariates(self, context: Tensor) -> Tensor:
        more = context[:, :, len(contract.PAST_CHANNELS) :]
        return n.covariate_features(more, self.past_mean, self.past_deviation)

    def fit_covariates(self, context: Tensor, known: Tensor) -> None:
        """Take the mean and deviation of further covariates from inputs to be trained on."""
        for kind, values in (
            ("past", context[:, :, len(contract.PAST_CHANNELS) :]),
            ("known", known[:, :, len(KNOWN_CHANNELS) :]),
        ):
            for channel in range(values.shape[2]):
                told = values[:, :, channel][torch.isfinite(values[:, :, channel])]
                if len(told) > 1:
                    getattr(self, f"{kind}_mean")[channel] = told.mean()
                    getattr(self, f"{kind}_deviation")[channel] = told.std().clamp_min(1e-6)

    def _named(self, static: Tensor) -> Tensor:
        codes = torch.nan_to_num(static[:, 1:]).long().clamp(0, 1023)
        named: Tensor = self.category(codes[:, 0]) + self.brand(codes[:, 1])
        return named

    def _one_freq(self, freq: Tensor, context: Tensor) -> str:
        codes = set(freq.flatten().tolist())
        if len(codes) != 1:
            raise ValueError(f"one pass is of one freq, these rows have codes {sorted(codes)}")
        name = _FREQ_BY_CODE.get(int(codes.pop()))
        if name is None or name not in self.config.freqs:
            raise ValueError(f"this model forecasts {self.config.freqs}, not the freq with code {freq.flatten()[0]}")
        length = contract.WINDOWS[name].context_length
        if context.shape[1] != length:
            raise ValueError(f"context of {name} has {length} buckets, not {context.shape[1]}")
        return name


def _sells_whole_units(context: Tensor, running: Tensor) -> Tensor:
    """Whether all that is known of an item was sold in whole units: bool (B, 1, 1)."""
    units = torch.cat([torch.nan_to_num(context[:, :, _UNITS]), running[:, _UNITS, None]], dim=1)
    return (torch.nan_to_num(units) == torch.nan_to_num(units).round()).all(1)[:, None, None]


def _rounded(quantiles: Tensor, whole: Tensor) -> Tensor:
    """Quantiles of whole units are whole: 0.4 pieces are not what one item in ten sells, but no piece is."""
    return torch.where(whole, (quantiles + 0.5).floor(), quantiles)


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
