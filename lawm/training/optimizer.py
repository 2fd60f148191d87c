"""Muon for 2-D hidden weights, AdamW for the rest; linear warm-up, then cosine to 0 (spec section 4).

Which weights are hidden matrices is said by the modules that hold them (`hidden_matrices`, see lawm/model/layers.py).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lawm.config import LawmError, OptimizerConfig

MOMENTS = {torch.optim.Muon: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}
"""What each keeps of a parameter."""


def schedule(step: int, steps: int, warmup: float) -> float:
    """The factor on every learning rate at `step` (counted from 0) of `steps`."""
    rising = int(steps * warmup)
    if step < rising:
        return (step + 1) / rising
    progress = (step - rising) / max(steps - rising, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


@dataclass(frozen=True)
class Groups:
    """Every trainable parameter of a module, in exactly one of three places."""

    hidden: list[Tensor]
    """Muon's: what the modules call their hidden matrices."""
    rest: list[Tensor]
    apart: dict[float, list[Tensor]]
    """AdamW's at learning rates of their own."""


def parameter_groups(module: nn.Module, rates: Mapping[nn.Module, float] | None = None) -> Groups:
    """The groups of `module`'s trainable parameters. `rates`: modules within it that learn at rates of their own, by
    AdamW whatever their weights are (networks that were trained before).

    Raises ValueError where a module calls something a hidden matrix that is none, or where a parameter would be in
    two groups.
    """
    names: dict[Tensor, str] = {p: n for n, p in module.named_parameters() if p.requires_grad}
    apart: dict[float, list[Tensor]] = {}
    for own, rate in (rates or {}).items():
        apart.setdefault(rate, []).extend(p for p in own.parameters() if p in names)
    taken = {p for group in apart.values() for p in group}
    own_matrices: list[Any] = [getattr(part, "hidden_matrices", list) for part in module.modules()]
    said: list[Tensor] = [p for matrices in own_matrices for p in matrices()]
    hidden = [p for p in said if p in names and p not in taken]
    odd = [names[p] for p in hidden if p.ndim != 2]
    if odd:
        raise ValueError(f"hidden matrices have two dimensions, and {', '.join(odd)} have another number")
    matrices = set(hidden)
    rest = [p for p in names if p not in matrices and p not in taken]
    counts = Counter([*hidden, *rest, *(p for group in apart.values() for p in group)])
    if set(counts) != set(names) or max(counts.values(), default=1) > 1:
        wrong = [n for p, n in names.items() if counts[p] != 1]
        raise ValueError(f"each trainable parameter belongs to one group: {', '.join(wrong)} to none or to several")
    return Groups(hidden, rest, apart)


class Optimizer:
    """Both optimisers as one: step, zero_grad, and a state keyed by parameter name.

    `rates`: as for `parameter_groups`; `rename`: from a parameter's name to the one that it has in a checkpoint.
    Named state makes a checkpoint independent of parameter order and of the number of ranks.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimizerConfig,
        steps: int,
        rates: Mapping[nn.Module, float] | None = None,
        rename: Callable[[str], str] = str,
    ) -> None:
        self.config, self.steps = config, steps
        self.names: dict[Tensor, str] = {p: rename(n) for n, p in module.named_parameters() if p.requires_grad}
        self.parts: list[tuple[torch.optim.Optimizer, float]] = []
        groups = parameter_groups(module, rates)
        rest = groups.rest
        if config.muon_lr == 0:
            own = {*groups.hidden, *groups.rest}
            rest = [p for p in self.names if p in own]
        elif groups.hidden:
            muon = torch.optim.Muon(groups.hidden, lr=config.muon_lr, weight_decay=config.weight_decay)
            self.parts.append((muon, config.muon_lr))
        if rest:
            self.parts.append((self._adamw(rest, config.adamw_lr), config.adamw_lr))
        for rate, learning in sorted(groups.apart.items()):
            self.parts.append((self._adamw(learning, rate), rate))

    def _adamw(self, parameters: list[Tensor], rate: float) -> torch.optim.AdamW:
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
        """The inverse of `named_tensors`; raises KeyError naming a parameter that does not exist, LawmError where
        another optimiser had it."""
        by_name = {n: p for p, n in self.names.items()}
        owner = {p: o for o, _ in self.parts for group in o.param_groups for p in group["params"]}
        for full in tensors:
            name, key = full.rsplit("/", 1)
            if key not in MOMENTS[type(owner[by_name[name]])]:
                raise LawmError(
                    f"the checkpoint holds the {key} of {name}, which {type(owner[by_name[name]]).__name__} has now: "
                    "the run was begun by another version of lawm. Go on with that one, or train anew into another "
                    "--out (the checkpoint can still be evaluated)"
                )
        for full, tensor in tensors.items():
            name, key = full.rsplit("/", 1)
            parameter = by_name[name]
            # AdamW keeps its step count on the CPU.
            where = torch.device("cpu") if key == "step" else parameter.device
            owner[parameter].state[parameter][key] = tensor.to(where).clone()
