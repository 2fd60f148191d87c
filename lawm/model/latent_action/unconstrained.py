"""Latents without a limit: the upper end of the capacity axis.

Legend: B batch, T states, N tokens of a state, D state width, K code width, Z latent-action width.
"""

from torch import Tensor

from lawm.model.latent_action.base import Bottleneck, LatentActions


class UnconstrainedBottleneck(Bottleneck):
    """z = codes: the upper end of the capacity axis."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.code_width = latent

    def forward(self, codes_BTK: Tensor, states_BTND: Tensor) -> LatentActions:
        metrics = {"latent_l1": codes_BTK.detach().abs().sum(-1).mean()}
        return LatentActions(codes_BTK, codes_BTK.new_zeros(()), metrics)
