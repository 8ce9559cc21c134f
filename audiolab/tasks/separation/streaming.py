"""A causal Conv-TasNet sample by sample: what it still needs of the past is kept, and the result is the offline one.

Shapes: b batch, s speaker, n filters, c channels, t time or frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolab.errors import InputError
from audiolab.nn.frame_norm import CumulativeSums
from audiolab.nn.layer_norm import CumulativeLayerNorm
from audiolab.tasks.separation.blocks import Block
from audiolab.tasks.separation.model import ConvTasNet


class ConvTasNetStream:
    """One recording (or a batch of them side by side) that arrives in chunks of any size.

    The samples of all `step`s and of `flush` are those of the model applied to the whole recording. `model.eval()`
    first: nothing here is for training. Raises InputError for a model that is not causal.

    >>> model = ConvTasNet(32, bottleneck=16, hidden=32, skip=16, blocks=2, repeats=1, norm="cLN", causal=True).eval()
    >>> stream = ConvTasNetStream(model)
    >>> stream.step(torch.zeros(1, 100)).shape, stream.flush().shape
    (torch.Size([1, 2, 88]), torch.Size([1, 2, 12]))
    """

    def __init__(self, model: ConvTasNet) -> None:
        if not model.causal:
            raise InputError(
                "this model is not causal and needs the whole recording: stream with one trained with "
                "model.causal=true model.norm=cLN, or separate long recordings in overlapping chunks"
            )
        self.model = model
        self._start()

    @property
    def latency_samples(self) -> int:
        """Samples from the first of a frame to its last: so many must have come before a sample leaves."""
        return self.model.framing.kernel_size

    @torch.inference_mode()
    def step(self, chunk_bt: Tensor) -> Tensor:
        """Take the next samples (batch, any number); return (batch, speaker, time), what no later sample changes."""
        if chunk_bt.ndim != 2 or (self._waiting is not None and len(chunk_bt) != len(self._waiting)):
            raise InputError(
                f"a chunk of shape {tuple(chunk_bt.shape)} does not continue the stream: give (batch, time)"
            )
        framing = self.model.framing
        if self._waiting is None:
            self._waiting = chunk_bt.new_zeros(len(chunk_bt), framing.left)
            self._overlap = chunk_bt.new_zeros(
                len(chunk_bt), self.model.num_speakers, framing.kernel_size - framing.stride
            )
        self._num_in += chunk_bt.shape[-1]
        return self._take(chunk_bt)

    @torch.inference_mode()
    def flush(self) -> Tensor:
        """End the recording and return its last samples; the next `step` begins another."""
        if self._waiting is None or not self._num_in:
            raise InputError("a stream without a sample cannot be ended: give `step` at least one sample first")
        framing, num_in, num_out = self.model.framing, self._num_in, self._num_out
        end = (framing.num_frames(num_in) - 1) * framing.stride + framing.kernel_size - framing.left
        rest_bst = self._take(self._waiting.new_zeros(len(self._waiting), max(0, end - num_in)))
        rest_bst = torch.cat([rest_bst, self._overlap], -1)[..., : num_in - num_out]
        self._start()
        return F.pad(rest_bst, (0, num_in - num_out - rest_bst.shape[-1]))

    def _start(self) -> None:
        self._waiting: Tensor | None = None  # samples that are not yet in a whole frame, or also in the next
        self._skipped = 0  # samples of the padding before the recording that have left already
        self._num_in = self._num_out = 0
        self._input_sums: CumulativeSums | None = None
        self._blocks = [
            _BlockStream(block, dilation, norm_first=self.model.norm_first)
            for block, dilation in zip(self.model.blocks, self.model.dilations, strict=True)
        ]

    def _take(self, chunk_bt: Tensor) -> Tensor:
        """Separate all frames that are whole by now."""
        framing = self.model.framing
        wave_bt = torch.cat([self._waiting, chunk_bt], -1)
        num_frames = max(0, (wave_bt.shape[-1] - framing.kernel_size) // framing.stride + 1)
        self._waiting = wave_bt[:, num_frames * framing.stride :]
        if not num_frames:
            return chunk_bt.new_zeros(len(chunk_bt), self.model.num_speakers, 0)
        span = (num_frames - 1) * framing.stride + framing.kernel_size
        encoded_bnt = self.model.encode(wave_bt[:, :span])
        estimate_bst = self.model.decode(self._masks(encoded_bnt), encoded_bnt)
        estimate_bst[..., : self._overlap.shape[-1]] += self._overlap
        num_final = num_frames * framing.stride
        self._overlap = estimate_bst[..., num_final:]
        skip = min(framing.left - self._skipped, num_final)
        self._skipped += skip
        self._num_out += num_final - skip
        return estimate_bst[..., skip:num_final]

    def _masks(self, encoded_bnt: Tensor) -> Tensor:
        normed_bnt, self._input_sums = _norm_step(self.model.input_norm, encoded_bnt, self._input_sums)
        x_bct, skips_bct = self.model.bottleneck(normed_bnt), None
        for block in self._blocks:
            residual, skip = block.step(x_bct)
            x_bct = x_bct if residual is None else x_bct + residual
            skips_bct = skip if skips_bct is None else skips_bct + skip
        return self.model.mask_of(x_bct if skips_bct is None else skips_bct)


class _BlockStream:
    """A block, the frames before the present ones that its depthwise convolution reaches, and its norms' sums.

    A few frames at a time, calls cost more than arithmetic: weights are brought into the form of matrices once.
    """

    def __init__(self, block: Block, dilation: int, *, norm_first: bool) -> None:
        self.block, self.dilation, self.norm_first = block, dilation, norm_first
        ends = [conv for conv in (block.residual, block.skip) if conv is not None]
        self.has_residual, self.num_residual = block.residual is not None, block.expand.in_channels
        self.expand_ci, self.expand_bias_c1 = block.expand.weight[..., 0], block.expand.bias[:, None]
        self.end_oc = torch.cat([conv.weight[..., 0] for conv in ends])
        self.end_bias_o1 = torch.cat([conv.bias for conv in ends])[:, None]
        self.taps = list(block.depthwise.weight.unbind(-1))
        bias_c = block.depthwise.bias
        self.tap_bias_c1 = torch.zeros_like(self.taps[0]) if bias_c is None else bias_c[:, None]
        self.frames_bct: Tensor | None = None  # those before the present ones up to `end`, and room for more
        self.end = 0
        self.sums: list[CumulativeSums | None] = [None, None]

    def step(self, x_bct: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return what is added to the residual path and what to the skip path for the next frames."""
        num_frames = x_bct.shape[-1]
        x_bct = self._normed(self.expand_ci @ x_bct + self.expand_bias_c1, self.block.act1, self.block.norm1, 0)
        x_bct = self._with_past(x_bct)
        y_bct = self.tap_bias_c1
        for tap, weight_c1 in enumerate(self.taps):
            first = tap * self.dilation
            y_bct = torch.addcmul(y_bct, x_bct[..., first : first + num_frames], weight_c1)
        out_bot = self.end_oc @ self._normed(y_bct, self.block.act2, self.block.norm2, 1) + self.end_bias_o1
        if not self.has_residual:
            return None, out_bot
        skip_bct = out_bot[:, self.num_residual :]
        return out_bot[:, : self.num_residual], skip_bct if skip_bct.shape[1] else None

    def _with_past(self, x_bct: Tensor) -> Tensor:
        """Return the frames after those that the convolution reaches back to, which are moved only now and then."""
        num_frames, reach = x_bct.shape[-1], (len(self.taps) - 1) * self.dilation
        if self.frames_bct is None or self.end + num_frames > self.frames_bct.shape[-1]:
            frames_bct = x_bct.new_zeros(*x_bct.shape[:2], reach + max(reach, 4 * num_frames))
            if self.frames_bct is not None:
                frames_bct[..., :reach] = self.frames_bct[..., self.end - reach : self.end]
            self.frames_bct, self.end = frames_bct, reach
        first, self.end = self.end - reach, self.end + num_frames
        self.frames_bct[..., self.end - num_frames : self.end] = x_bct
        return self.frames_bct[..., first : self.end]

    def _normed(self, x_bct: Tensor, act: nn.Module, norm: nn.Module, place: int) -> Tensor:
        x_bct = x_bct if self.norm_first else act(x_bct)
        x_bct, self.sums[place] = _norm_step(norm, x_bct, self.sums[place])
        return act(x_bct) if self.norm_first else x_bct


def _norm_step(norm: nn.Module, x_bct: Tensor, sums: CumulativeSums | None) -> tuple[Tensor, CumulativeSums | None]:
    return norm.step(x_bct, sums) if isinstance(norm, CumulativeLayerNorm) else (norm(x_bct), None)
