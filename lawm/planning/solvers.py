"""Searches for a sequence of actions, for several episodes at once; sampling, costs and refits are shared.

Every solver walks in standardised numbers from the space's start, keeps candidates within what may be taken, and
returns the best sequence that it saw (`select: best`) or the mean that it ended with (`elite_mean`).

Legend: E episodes, S candidates, H horizon, A width of the actions.
Sources: CEM: Rubinstein 1997; iCEM: Pinneri et al. 2020 (coloured noise, kept elites, momentum, the mean as a last
candidate); MPPI: Williams et al. 2017, its temperature in standard deviations of the costs; gradient: Adam on every
candidate through the world model, as in Henaff et al. 2017; random shooting: one draw of the whole budget.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lawm.config import PlanConfig
from lawm.planning.problem import ActionSpace

logger = logging.getLogger(__name__)

Cost = Callable[[Tensor], Tensor]
"""Sequences [E, S, H, A] in the labels' units -> cost [E, S]."""


@dataclass(frozen=True)
class Given:
    """What a search is given besides its space: where it begins, numbers [E, H, A] in the space's units (None: at the
    space's start), and when it has to be over (`time.perf_counter`; None: when its iterations are)."""

    begin: Tensor | None = None
    deadline: float | None = None


AT_THE_START = Given()


@dataclass
class Search:
    """A search on its way: mean and standard deviation [E, 1, H, A] of the candidates, in standardised numbers, and the
    best sequence so far [E, H, A] with its cost [E], which is infinite as long as all costs were no numbers."""

    cost: Cost
    space: ActionSpace
    config: PlanConfig
    generators: Sequence[torch.Generator]
    given: Given = AT_THE_START
    mean: Tensor = field(init=False)
    std: Tensor = field(init=False)
    best: Tensor = field(init=False)
    best_cost: Tensor = field(init=False)

    def __post_init__(self) -> None:
        episodes, device = len(self.generators), self.space.scale.device
        shape = (self.steps, len(self.space.scale))
        begin = self.space.start if self.given.begin is None else self.given.begin.unsqueeze(1)
        self.mean = ((begin - self.space.centre) / self.space.scale).expand(episodes, 1, *shape)
        self.std = (self.space.std / self.space.scale).expand(episodes, 1, *shape)
        self.best, self.best_cost = self.mean[:, 0], torch.full((episodes,), float("inf"), device=device)

    @property
    def steps(self) -> int:
        """Steps that numbers are searched for: of a straight line, one."""
        return 1 if self.config.straight else self.config.horizon

    def rounds(self) -> Iterator[int]:
        """The iterations; at least one, and no more than there is time for by the longest one so far."""
        longest = 0.0
        for i in range(self.config.iterations):
            began = time.perf_counter()
            if i and self.given.deadline is not None and began + longest > self.given.deadline:
                return
            yield i
            if self.given.deadline is not None:
                if self.space.scale.is_cuda:
                    torch.cuda.synchronize()
                longest = max(longest, time.perf_counter() - began)

    def noise(self, samples: int) -> Tensor:
        """Standard normal numbers [E, S, H, A], each episode's from its own generator; over time coloured where
        `plan.noise_beta` asks for it."""
        shape, device = (self.steps, len(self.space.scale)), self.space.scale.device
        white = [torch.randn(samples, *shape, generator=g, device=g.device) for g in self.generators]
        noise = torch.stack(white).to(device)
        return coloured(noise, self.config.noise_beta) if self.config.noise_beta else noise

    def drawn(self, samples: int) -> Tensor:
        """Candidates [E, S, H, A] around the mean."""
        return self.mean + self.std * self.noise(samples)

    def taken(self, candidates: Tensor) -> Tensor:
        """The candidates, moved to what may be taken."""
        within = self.space.kept_within(candidates * self.space.scale + self.space.centre)
        return (within - self.space.centre) / self.space.scale

    def judged(self, candidates: Tensor) -> Tensor:
        """Costs [E, S] of candidates that may be taken, infinite where they are no numbers; the best is noted."""
        costs = self.cost(candidates * self.space.scale + self.space.centre)
        costs = costs.masked_fill(costs.isnan(), float("inf"))
        first, place = costs.min(dim=1)
        better = first < self.best_cost
        found = candidates[torch.arange(len(candidates), device=place.device), place]
        self.best = torch.where(better[:, None, None], found, self.best)
        self.best_cost = torch.where(better, first, self.best_cost)
        return costs

    def ranked(self, candidates: Tensor, costs: Tensor) -> Tensor:
        """The `plan.elites` cheapest, cheapest first."""
        order = costs.argsort(dim=1)[:, : self.config.elites, None, None]
        return candidates.gather(1, order.expand(-1, -1, *candidates.shape[2:]))

    def refit(self, mean: Tensor, std: Tensor, momentum: float = 0.0) -> None:
        """New mean and standard deviation, which keeps its floor."""
        floor = self.space.floor / self.space.scale
        self.mean = momentum * self.mean + (1 - momentum) * mean
        self.std = momentum * self.std + (1 - momentum) * std.maximum(floor)

    def result(self) -> tuple[Tensor, Tensor]:
        """(sequences [E, H, A] in the labels' units, least cost [E]), which is infinite where an episode has none."""
        chosen = self.best if self.config.select == "best" else self.taken(self.mean)[:, 0]
        return chosen * self.space.scale + self.space.centre, self.best_cost


def coloured(white_ESHA: Tensor, beta: float) -> Tensor:
    """Noise whose power falls with frequency as f^-beta over the horizon, each number still of variance 1 (Timmer and
    Koenig 1995, as iCEM uses it)."""
    steps = white_ESHA.shape[2]
    if steps < 2:
        return white_ESHA
    frequency = torch.fft.rfftfreq(steps, device=white_ESHA.device).to(white_ESHA)
    frequency[0] = 1 / steps
    weight = frequency ** (-beta / 2)
    each = torch.full_like(weight, 2.0)  # how often a frequency stands in the whole spectrum
    each[0] = 1.0
    if steps % 2 == 0:
        each[-1] = 1.0
    weight = weight * (steps / (each * weight.square()).sum()).sqrt()
    spectrum = torch.fft.rfft(white_ESHA, dim=2) * weight[:, None]
    return torch.fft.irfft(spectrum, n=steps, dim=2)


@torch.no_grad()
def cem(
    cost: Cost,
    space: ActionSpace,
    config: PlanConfig,
    generators: Sequence[torch.Generator],
    given: Given = AT_THE_START,
) -> tuple[Tensor, Tensor]:
    """The cross-entropy method: (sequences [E, H, A] in the labels' units, least cost [E]) of one search for each
    generator, which alone decides its episode's samples. The cost is infinite where an episode's are all no numbers."""
    search = Search(cost, space, config, generators, given)
    for _ in search.rounds():
        candidates = search.taken(search.drawn(config.samples))
        elites = search.ranked(candidates, search.judged(candidates))
        search.refit(elites.mean(dim=1, keepdim=True), elites.std(dim=1, keepdim=True, correction=0))
    return search.result()


KEPT, MOMENTUM, FEWER = 0.3, 0.1, 1.25
"""iCEM's own: share of the elites that are tried again, weight of the old mean and deviation, and by how much each
iteration draws fewer."""


@torch.no_grad()
def icem(
    cost: Cost,
    space: ActionSpace,
    config: PlanConfig,
    generators: Sequence[torch.Generator],
    given: Given = AT_THE_START,
) -> tuple[Tensor, Tensor]:
    """iCEM. `plan.noise_beta` colours the noise; the first elites of an iteration are candidates of the next; the mean
    is a candidate of the last."""
    search = Search(cost, space, config, generators, given)
    elites: Tensor | None = None
    for i in search.rounds():
        samples = max(round(config.samples * FEWER**-i), min(2 * config.elites, config.samples))
        candidates = search.drawn(samples)
        if elites is not None:
            kept = max(1, round(KEPT * elites.shape[1]))
            candidates = torch.cat([candidates, elites[:, :kept]], dim=1)
        if i == config.iterations - 1:
            candidates = torch.cat([candidates, search.mean], dim=1)
        candidates = search.taken(candidates)
        elites = search.ranked(candidates, search.judged(candidates))
        mean, std = elites.mean(1, keepdim=True), elites.std(1, keepdim=True, correction=0)
        search.refit(mean, std, MOMENTUM)
    return search.result()


@torch.no_grad()
def mppi(
    cost: Cost,
    space: ActionSpace,
    config: PlanConfig,
    generators: Sequence[torch.Generator],
    given: Given = AT_THE_START,
) -> tuple[Tensor, Tensor]:
    """MPPI: candidates weigh exp(-cost / temperature), the temperature in standard deviations of an iteration's costs;
    the standard deviation is refitted by the same weights."""
    search = Search(cost, space, config, generators, given)
    for _ in search.rounds():
        candidates = search.taken(search.drawn(config.samples))
        costs = search.judged(candidates)
        finite = costs.isfinite()
        plain = torch.where(finite, costs, 0.0)
        count = finite.sum(1, keepdim=True).clamp_min(1)
        centre = plain.sum(1, keepdim=True) / count
        spread = (torch.where(finite, plain - centre, 0.0).square().sum(1, keepdim=True) / count).sqrt()
        logits = -(plain - centre) / (config.temperature * spread).clamp_min(1e-12)
        weight = torch.where(finite, logits, -float("inf")).softmax(dim=1).nan_to_num(0.0)[:, :, None, None]
        found = finite.any(1)[:, None, None, None]
        mean = (weight * candidates).sum(1, keepdim=True)
        std = (weight * (candidates - mean).square()).sum(1, keepdim=True).sqrt()
        search.refit(torch.where(found, mean, search.mean), torch.where(found, std, search.std))
    return search.result()


def gradient(
    cost: Cost,
    space: ActionSpace,
    config: PlanConfig,
    generators: Sequence[torch.Generator],
    given: Given = AT_THE_START,
) -> tuple[Tensor, Tensor]:
    """Adam on every candidate at once, `plan.iterations` steps of size `plan.learning_rate` in standardised numbers,
    from draws around the start. `cost` has to let gradients through."""
    search = Search(cost, space, config, generators, given)
    with torch.no_grad():
        walking = search.taken(search.drawn(config.samples))
    walking = walking.requires_grad_(True)
    optimizer = torch.optim.Adam([walking], lr=config.learning_rate)
    for _ in search.rounds():
        with torch.enable_grad():
            costs = search.cost(walking * space.scale + space.centre)
            total = torch.where(costs.isfinite(), costs, 0.0).sum()
        walking.grad = torch.autograd.grad(total, walking)[0].nan_to_num(0.0)  # of the candidates alone, not the model
        optimizer.step()
        with torch.no_grad():
            walking.copy_(search.taken(walking))
            search.judged(walking.detach().clone())
    with torch.no_grad():
        search.mean = search.best[:, None]
        return search.result()


@torch.no_grad()
def random_shooting(
    cost: Cost,
    space: ActionSpace,
    config: PlanConfig,
    generators: Sequence[torch.Generator],
    given: Given = AT_THE_START,
) -> tuple[Tensor, Tensor]:
    """The best of `plan.samples` x `plan.iterations` draws: the budget of the other solvers, in one go."""
    search = Search(cost, space, config, generators, given)
    for _ in search.rounds():
        search.judged(search.taken(search.drawn(config.samples)))
    search.mean = search.best[:, None]
    return search.result()


Solver = Callable[[Cost, ActionSpace, PlanConfig, Sequence[torch.Generator], Given], tuple[Tensor, Tensor]]
SOLVERS: dict[str, Solver] = {
    "cem": cem,
    "icem": icem,
    "mppi": mppi,
    "gradient": gradient,
    "random": random_shooting,
}


class Chunked:
    """A cost, computed for so many candidates of all episodes at a time (0: all); where a GPU's memory does not hold
    them, for half as many, and so on, which is said."""

    def __init__(self, cost: Cost, episodes: int, most: int) -> None:
        self.cost, self.episodes, self.most = cost, episodes, most

    def __call__(self, sequences_ESHA: Tensor) -> Tensor:
        samples = sequences_ESHA.shape[1]
        while True:
            each = samples if not self.most else max(1, self.most // self.episodes)
            try:
                return torch.cat([self.cost(part) for part in sequences_ESHA.split(each, dim=1)], dim=1)
            except torch.cuda.OutOfMemoryError:
                if each == 1:
                    raise
                self.most = max(1, each // 2) * self.episodes
                torch.cuda.empty_cache()
                logger.warning("the GPU's memory does not hold %d candidates at once: %d from here on", each, each // 2)
