"""Muon for 2-D hidden weights, AdamW for the rest; linear warm-up, then cosine to 0 (spec section 4)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lawm.config import OptimizerConfig

# Embeddings, heads and codebooks are 2-D but not hidden: AdamW has them, as in Jordan et al. 2024.
NOT_HIDDEN = ("embed", "head", "codebook", "embed_state", "query", "multiplier")


def schedule(step: int, steps: int, warmup: float) -> float:
    """The factor on every learning rate at `step` (counted from 0) of `steps`."""
    rising = int(steps * warmup)
    if step < rising:
        return (step + 1) / rising
    progress = (step - rising) / max(steps - rising, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class Optimizer:
    """Both optimisers as one: step, zero_grad, and a state keyed by parameter name.

    `rates`: learning rates of parameters whose names start so; AdamW has them.
    Named state makes a checkpoint independent of parameter order and of the number of ranks.
    """

    def __init__(
        self, module: nn.Module, config: OptimizerConfig, steps: int, rates: Mapping[str, float] | None = None
    ) -> None:
        self.config, self.steps = config, steps
        self.names = {p: n for n, p in module.named_parameters() if p.requires_grad}
        self.parts: list[tuple[torch.optim.Optimizer, float]] = []
        apart = {
            p: rate for p, n in self.names.items() for prefix, rate in (rates or {}).items() if n.startswith(prefix)
        }
        hidden = [p for p, n in self.names.items() if p.ndim == 2 and not set(n.split(".")) & set(NOT_HIDDEN)]
        hidden = [p for p in hidden if p not in apart]
        hidden = hidden if config.muon_lr > 0 else []
        chosen = set(hidden)
        rest = [p for p in self.names if p not in chosen and p not in apart]
        if hidden:
            muon = torch.optim.Muon(hidden, lr=config.muon_lr, weight_decay=config.weight_decay)
            self.parts.append((muon, config.muon_lr))
        if rest:
            self.parts.append((self._adamw(rest, config.adamw_lr), config.adamw_lr))
        for rate in sorted(set(apart.values())):
            self.parts.append((self._adamw([p for p, r in apart.items() if r == rate], rate), rate))

    def _adamw(self, parameters: list[nn.Parameter], rate: float) -> torch.optim.AdamW:
        """AdamW whose weight decay leaves biases and gains alone."""
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=rate, betas=self.config.betas)

    def learning_rate(self, step: int) -> float:
        """The AdamW learning rate at that step."""
        return self.config.adamw_lr * schedule(step, self.steps, self.config.warmup)

    def clip_gradients(self) -> Tensor:
        """Clips to the global norm limit; returns the norm before clipping."""
        limit = self.config.clip_norm or math.inf
        return torch.nn.utils.clip_grad_norm_(list(self.names), limit)

    def step(self, step: int) -> None:
        factor = schedule(step, self.steps, self.config.warmup)
        for optimizer, rate in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer, _ in self.parts:
            optimizer.zero_grad(set_to_none=True)

    @property
    def state(self) -> dict[Any, dict[str, Any]]:
        """Per-parameter state of both optimisers."""
        return {p: s for optimizer, _ in self.parts for p, s in optimizer.state.items()}

    def named_tensors(self) -> dict[str, Tensor]:
        """`<parameter name>/<moment>` -> tensor, for a checkpoint."""
        found: dict[str, Tensor] = {}
        for parameter, state in self.state.items():
            for key, value in state.items():
                tensor = value if isinstance(value, Tensor) else torch.tensor(value)
                found[f"{self.names[parameter]}/{key}"] = tensor.detach()
        return found

    def load_named_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `named_tensors`; raises KeyError naming a parameter that does not exist."""
        by_name = {n: p for p, n in self.names.items()}
        owner = {p: o for o, _ in self.parts for group in o.param_groups for p in group["params"]}
        for full, tensor in tensors.items():
            name, key = full.rsplit("/", 1)
            parameter = by_name[name]
            # AdamW keeps its step count on the CPU.
            where = torch.device("cpu") if key == "step" else parameter.device
            owner[parameter].state[parameter][key] = tensor.to(where).clone()
