"""Mamba's convolution and gated scan for many short sequences at once on a CPU, with hand-written backwards.

The sequences lie side by side in memory: (time, channel, sequence). A step of the recurrence is then a few operations
on long rows, whatever the number of channels; with fewer sequences than channels the layout of `selective_scan` is the
faster one. All that belongs to a segment of time is done while it is in the cache, and the backward recomputes it.

Shape letters: t time, d channel, b sequence, n state, k tap of the convolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from audiolab.nn.by_hand import Buffers, once

_SEGMENT_NUMEL = 2**18  # numbers in one buffer of states: measured with benchmarks/mamba.py, 1 MB each


def conv_silu(x_tdb: Tensor, weight_dk: Tensor, bias_d: Tensor) -> Tensor:
    """SiLU of the causal depthwise convolution over time, output as long as the input.

    >>> x_tdb = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    >>> conv_silu(x_tdb, torch.tensor([[10.0, 1.0]]), torch.zeros(1)).flatten() / torch.tensor([1.0, 12.0, 23.0])
    tensor([0.7311, 1.0000, 1.0000])
    """
    return _ConvSilu.apply(x_tdb, weight_dk, bias_d)


def gated_scan(
    x_tdb: Tensor,
    dt_tdb: Tensor,
    A_dn: Tensor,
    B_tnb: Tensor,
    C_tnb: Tensor,
    D_d: Tensor,
    gate_tdb: Tensor,
    dt_bias_d: Tensor,
) -> Tensor:
    """SiLU(gate) (scan(x) + D x) with the step size softplus(dt + bias), as `mamba_ssm`'s `selective_scan_fn`.

    All in float32 or all in float64; every sequence starts from the zero state; gradients can be taken once. Equal to
    `selective_scan` on the same numbers. The backward keeps the inputs and one state a segment.
    """
    return _GatedScan.apply(x_tdb, dt_tdb, A_dn, B_tnb, C_tnb, D_d, gate_tdb, dt_bias_d)


class _ConvSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return F.silu(_convolve(x, weight, bias), inplace=True)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, bias = ctx.saved_tensors
        taps = weight.shape[1]
        grad = torch.ops.aten.silu_backward(grad, _convolve(x, weight, bias))
        grad_x = grad * weight[:, -1, None]
        grad_weight = torch.empty_like(weight)
        product = torch.empty_like(x)
        for back in range(min(taps, len(x))):
            tap = taps - 1 - back
            if back:
                grad_x[:-back].addcmul_(grad[back:], weight[:, tap, None])
            torch.mul(grad[back:], x[: len(x) - back], out=product[back:])
            grad_weight[:, tap] = product[back:].sum((0, 2))
        grad_weight[:, : max(0, taps - len(x))] = 0
        return grad_x, grad_weight, grad.sum((0, 2))


class _GatedScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, gate: Tensor, dt_bias: Tensor
    ) -> Tensor:
        work = _Recurrence(x, dt, A, B, C, D, dt_bias)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        state, starts, keep = work.zero_state(), [], any(ctx.needs_input_grad)
        for part in work.segments():
            if keep:
                starts.append(state)
            states = work.run(part, state)
            work.sum_up(part, states, out=y[part]).mul_(F.silu(gate[part]))
            state = states[-1].clone()
        if keep:
            ctx.save_for_backward(x, dt, A, B, C, D, gate, dt_bias, *starts)
        return y

    @staticmethod
    @once
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
        x, dt, A, B, C, D, gate, dt_bias, *starts = ctx.saved_tensors
        work = _Recurrence(x, dt, A, B, C, D, dt_bias)
        grad_x, grad_dt, grad_B, grad_C, grad_gate = (
            torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, dt, B, C, gate)
        )
        grad_A_nd, grad_D = torch.zeros_like(work.A_nd1[..., 0]), torch.zeros_like(D)
        carried = work.zero_state()
        for part, start in zip(reversed(list(work.segments())), reversed(starts), strict=True):
            states = work.run(part, start)
            decay, delta, drive, x_s, gate_s = work.decay, work.delta, work.drive, x[part], gate[part]
            summed = work.sum_up(part, states, out=torch.empty_like(x_s))
            grad_gate[part] = torch.ops.aten.silu_backward(summed.mul_(grad_y[part]), gate_s)
            grad = F.silu(gate_s).mul_(grad_y[part])
            grad_D += torch.mul(grad, x_s, out=summed).sum((0, 2))

            grads = work.buffer("grads", len(x_s))
            torch.mul(grad[:, None], C[part, :, None], out=grads)
            grads[-1] += carried
            steps, decays = grads.unbind(), decay.unbind()
            for position in range(len(steps) - 2, -1, -1):
                steps[position].addcmul_(decays[position + 1], steps[position + 1])

            product = work.buffer("product", len(x_s))
            torch.sum(torch.mul(states[1:], grad[:, None], out=product), 2, out=grad_C[part])
            torch.sum(torch.mul(grads, drive[:, None], out=product), 2, out=grad_B[part])
            grad_drive = _weighted(grads, B[part, :, None], out=summed)
            torch.addcmul(grad_drive * delta, grad, D[:, None], out=grad_x[part])
            decay.mul_(grads)
            carried = decay[0].clone()
            grad_power = decay.mul_(states[:-1])  # gradient of delta A, the exponent
            grad_A_nd += torch.mul(grad_power, delta[:, None], out=product).sum((0, 3))
            grad_delta = grad_drive.mul_(x_s)
            for power_n, A_d1 in zip(grad_power.unbind(1), work.A_nd1, strict=True):
                grad_delta.addcmul_(power_n, A_d1)
            grad_dt[part] = torch.ops.aten.softplus_backward(grad_delta, work.before_softplus, 1, 20)
        return grad_x, grad_dt, grad_A_nd.t(), grad_B, grad_C, grad_D, grad_gate, grad_dt.sum((0, 2))


class _Recurrence:
    """The states of one segment of time after the other, in working memory that the segments share."""

    def __init__(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor) -> None:
        self.x, self.dt, self.B, self.C, self.D, self.dt_bias = x, dt, B, C, D[:, None], dt_bias[:, None]
        self.A_nd1 = A.t()[..., None].contiguous()
        self.state_shape = (A.shape[1], *x.shape[1:])  # (n, d, b)
        self.length = min(max(1, _SEGMENT_NUMEL // max(1, x[0].numel() * A.shape[1])), len(x))
        self.buffers = Buffers()

    def segments(self) -> Iterator[slice]:
        for begin in range(0, len(self.x), self.length):
            yield slice(begin, min(begin + self.length, len(self.x)))

    def zero_state(self) -> Tensor:
        return self.x.new_zeros(self.state_shape)

    def buffer(self, name: str, length: int) -> Tensor:
        return self.buffers.get(name, (length, *self.state_shape), self.x)

    def run(self, part: slice, start: Tensor) -> Tensor:
        """States around the steps of a segment; `before_softplus`, `delta`, `drive`, `decay` are its own."""
        x = self.x[part]
        self.before_softplus = self.dt[part] + self.dt_bias
        self.delta = F.softplus(self.before_softplus)
        self.drive = self.delta * x
        self.decay = torch.mul(self.delta[:, None], self.A_nd1, out=self.buffer("decay", len(x))).exp_()
        states = self.buffer("states", len(x) + 1)
        torch.mul(self.drive[:, None], self.B[part, :, None], out=states[1:])
        states[0] = start
        steps = states.unbind()
        for decay, before, after in zip(self.decay.unbind(), steps[:-1], steps[1:], strict=True):
            after.addcmul_(decay, before)
        return states

    def sum_up(self, part: slice, states: Tensor, out: Tensor) -> Tensor:
        """C . h + D x."""
        return _weighted(states[1:], self.C[part, :, None], out).addcmul_(self.x[part], self.D)


def _weighted(states_tndb: Tensor, weight_tn1b: Tensor, out: Tensor) -> Tensor:
    """Sum over n of weight x states, into `out` (t, d, b)."""
    torch.mul(states_tndb[:, 0], weight_tn1b[:, 0], out=out)
    for states_tdb, weight_t1b in zip(states_tndb.unbind(1)[1:], weight_tn1b.unbind(1)[1:], strict=True):
        out.addcmul_(states_tdb, weight_t1b)
    return out


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    taps = weight.shape[1]
    out = torch.addcmul(bias[:, None], x, weight[:, -1, None])
    for back in range(1, min(taps, len(x))):
        out[back:].addcmul_(x[:-back], weight[:, taps - 1 - back, None])
    return out
