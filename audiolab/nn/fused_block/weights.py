"""What a block of Conv-TasNet is made of, as plain tensors.

Shapes: i channels in, o channels out, c hidden channels, p taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from audiolab.nn.depthwise import tap_shifts


class ActNorm(NamedTuple):
    """PReLU (one slope) and gLN of one place in the block, in either order."""

    slope: Tensor
    weight_c: Tensor
    bias_c: Tensor


class BlockWeights(NamedTuple):
    """The parameters of a block, 1x1 and depthwise convolutions as matrices."""

    expand_ci: Tensor
    expand_bias_c: Tensor
    inner: ActNorm
    taps_cp: Tensor
    taps_bias_c: Tensor | None
    outer: ActNorm
    out_oc: Tensor
    out_bias_o: Tensor

    def flat(self) -> list[Tensor | None]:
        """Return all tensors one after the other."""
        return [*self[:2], *self.inner, *self[3:5], *self.outer, *self[6:]]

    @classmethod
    def of_flat(cls, flat: Sequence[Tensor | None]) -> BlockWeights:
        """Undo `flat`."""
        return cls(*flat[:2], ActNorm(*flat[2:5]), *flat[5:7], ActNorm(*flat[7:10]), *flat[10:])


class BlockShape(NamedTuple):
    """What is fixed in a block: dilation, zeros before the signal, order, eps of the norms, what is kept."""

    dilation: int
    left: int
    norm_first: bool
    eps: float
    recompute: bool

    def shifts(self, weights: BlockWeights) -> list[int]:
        """For each tap how many frames later than the output it reads."""
        return tap_shifts(weights.taps_cp.shape[1], self.dilation, self.left)
