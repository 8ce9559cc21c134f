"""The selective scan of Mamba (Gu & Dao 2023, algorithm 2) in plain PyTorch, with a hand-written backward.

    h[t] = exp(delta[t] A) h[t-1] + delta[t] x[t] B[t],     y[t] = C[t] . h[t]

Time is cut into segments, so that the working buffers stay in the cache (CPU) or within a fixed share of memory
(CUDA), and a segment into chunks whose steps run side by side, so that few kernels are launched: first each chunk
alone gives its last state, a short loop carries the states over the chunks, then each chunk runs from its true
start. Only the recurrence itself is ever computed (every factor exp(delta A) lies in [0, 1] for A <= 0, nothing is
divided or summed in logarithms), so no step size and no length can overflow.

Shape letters: b batch, t time, d channel, n state, l position in the chunk, g chunk. Work happens in (l, g, b, n, d).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from audiolab.errors import InputError
from audiolab.nn.by_hand import Buffers, once

# Numbers in one (l, g, b, n, d) buffer, and in one step of it over all chunks: measured with benchmarks/mamba.py on
# the CPU (a buffer of 4 MB, one step below the size at which PyTorch starts a second thread); for CUDA a step that
# keeps the whole device busy.
_SEGMENT_NUMEL = {"cpu": 2**20, "cuda": 2**25}
_STEP_NUMEL = {"cpu": 2**13, "cuda": 2**20}
_MIN_SEGMENT_LEN = 16  # so that one kept state a chunk stays a small part of all states however large the batch


class ScanPlan(NamedTuple):
    """How time is cut: `segment_len` steps at a time, in `num_chunks` chunks that run side by side."""

    segment_len: int
    num_chunks: int


def plan_scan(num_steps: int, state_numel: int, device_type: str) -> ScanPlan:
    """The plan for `num_steps` steps of states with `state_numel` numbers (batch x channel x state).

    >>> plan_scan(500, 8 * 512 * 16, "cpu")
    ScanPlan(segment_len=16, num_chunks=1)
    >>> plan_scan(201, 24 * 288 * 16, "cuda")
    ScanPlan(segment_len=201, num_chunks=9)
    """
    kind = device_type if device_type in _SEGMENT_NUMEL else "cuda"
    state_numel = max(state_numel, 1)
    segment_len = min(max(_SEGMENT_NUMEL[kind] // state_numel, _MIN_SEGMENT_LEN), max(num_steps, 1))
    # 2 segment_len / num_chunks + num_chunks launches: least at sqrt(2 segment_len)
    num_chunks = min(_STEP_NUMEL[kind] // state_numel, math.isqrt(2 * segment_len))
    return ScanPlan(segment_len, max(num_chunks, 1))


def selective_scan(
    x_btd: Tensor,
    delta_btd: Tensor,
    A_dn: Tensor,
    B_btn: Tensor,
    C_btn: Tensor,
    initial_state_bdn: Tensor | None = None,
    plan: ScanPlan | None = None,
) -> tuple[Tensor, Tensor]:
    """Output y (batch, time, channel) and last state (batch, channel, state) of the selective scan.

    Computed and returned in float32 (float64 when x is), also under autocast; the sums over state and channel are
    matrix products and follow `torch.set_float32_matmul_precision`. Differentiable once in every tensor. A must be
    <= 0 for a stable recurrence, delta is the step after softplus. Memory: the backward keeps the inputs and one state
    a chunk (of ten steps or more in long sequences) and recomputes the others; working buffers are three segments.

    >>> x = torch.ones(1, 3, 1)
    >>> y, last = selective_scan(x, x, torch.full((1, 1), -0.6931472), x, x)
    >>> y.flatten().tolist(), last.shape
    ([1.0, 1.5, 1.75], torch.Size([1, 1, 1]))
    """
    batch, num_steps, channels = x_btd.shape
    states = A_dn.shape[-1]
    if num_steps == 0:
        raise InputError("selective_scan got an input without a single time step; give at least one frame.")
    dtype = torch.promote_types(x_btd.dtype, torch.float32)
    if initial_state_bdn is None:
        initial_state_bdn = x_btd.new_zeros(batch, channels, states, dtype=dtype)
    if plan is None:
        plan = plan_scan(num_steps, batch * channels * states, x_btd.device.type)
    tensors = (x_btd, delta_btd, A_dn, B_btn, C_btn, initial_state_bdn)
    return _SelectiveScan.apply(*(tensor.to(dtype) for tensor in tensors), plan)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, plan: ScanPlan
    ) -> tuple[Tensor, Tensor]:
        starts = []
        y = torch.empty_like(x)
        A_nd, state_bnd = A.t().contiguous(), state.transpose(1, 2)
        buffers = Buffers()
        with torch.autocast(x.device.type, enabled=False):
            for begin, end in _segments(x.shape[1], plan.segment_len):
                delta_s, x_s, B_s, C_s = (
                    _chunked(tensor[:, begin:end], plan.num_chunks) for tensor in (delta, x, B, C)
                )
                decay, states = _inputs(delta_s, delta_s * x_s, A_nd, B_s, buffers)
                _chunk_starts(decay, states, delta_s, A_nd, state_bnd)
                _run(decay, states)
                _store(_sum_state(C_s, states[1:]), y[:, begin:end])
                state_bnd = states[-1, -1].clone()
                starts.append(states[0].clone() if any(ctx.needs_input_grad) else None)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, delta, A, B, C, *starts)
        ctx.plan = plan
        return y, state_bnd.transpose(1, 2).contiguous()

    @staticmethod
    @once
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, A, B, C, *starts = ctx.saved_tensors
        grad_x, grad_delta, grad_B, grad_C = (torch.empty_like(tensor) for tensor in (x, delta, B, C))
        A_nd, grad_state_bnd = A.t().contiguous(), grad_last.transpose(1, 2)
        grad_A_nd = torch.zeros_like(A_nd)
        buffers = Buffers()
        segments = list(_segments(x.shape[1], ctx.plan.segment_len))
        with torch.autocast(x.device.type, enabled=False):
            for (begin, end), start in zip(reversed(segments), reversed(starts), strict=True):
                delta_s, x_s, B_s, C_s, grad_y_s = (
                    _chunked(tensor[:, begin:end], ctx.plan.num_chunks) for tensor in (delta, x, B, C, grad_y)
                )
                drive_s = delta_s * x_s
                decay, states = _inputs(delta_s, drive_s, A_nd, B_s, buffers)
                states[0] = start
                _run(decay, states)
                grads = buffers.get("grads", decay.shape, decay)
                torch.mul(grad_y_s.unsqueeze(-2), C_s.unsqueeze(-1), out=grads)
                _run_back(decay, grads, delta_s, A_nd, grad_state_bnd)

                _store(_sum_channel(states[1:], grad_y_s), grad_C[:, begin:end])
                _store(_sum_channel(grads, drive_s), grad_B[:, begin:end])
                grad_drive_s = _sum_state(B_s, grads)
                decay.mul_(grads)
                grad_state_bnd = decay[0, 0].clone()
                grad_power = decay.mul_(states[:-1])  # gradient of delta A, the exponent
                grad_A_nd += torch.mul(grad_power, delta_s.unsqueeze(-2), out=states[1:]).sum((0, 1, 2))
                grad_delta_s = grad_power.mul_(A_nd).sum(-2).addcmul_(grad_drive_s, x_s)
                _store(grad_delta_s, grad_delta[:, begin:end])
                _store(grad_drive_s.mul_(delta_s), grad_x[:, begin:end])
        return grad_x, grad_delta, grad_A_nd.t(), grad_B, grad_C, grad_state_bnd.transpose(1, 2), None


def _segments(num_steps: int, segment_len: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + segment_len, num_steps)) for begin in range(0, num_steps, segment_len)]


def _chunked(tensor_btk: Tensor, num_chunks: int) -> Tensor:
    """(b, t, k) -> contiguous (l, g, b, k); zeros fill the last chunk, and a step with delta 0 changes no state."""
    num_steps = tensor_btk.shape[1]
    chunk_len = math.ceil(num_steps / num_chunks)
    num_chunks = math.ceil(num_steps / chunk_len)
    missing = chunk_len * num_chunks - num_steps
    if missing:
        tensor_btk = F.pad(tensor_btk, (0, 0, 0, missing))
    return tensor_btk.unflatten(1, (num_chunks, chunk_len)).permute(2, 1, 0, 3).contiguous()


def _store(tensor_lgbk: Tensor, out_btk: Tensor) -> None:
    """Undo `_chunked` into a slice of the result."""
    tensor_bglk = tensor_lgbk.permute(2, 1, 0, 3)
    num_chunks, chunk_len = tensor_bglk.shape[1:3]
    if out_btk.shape[1] == num_chunks * chunk_len:
        out_btk.unflatten(1, (num_chunks, chunk_len)).copy_(tensor_bglk)
    else:
        out_btk.copy_(tensor_bglk.flatten(1, 2)[:, : out_btk.shape[1]])


def _inputs(delta: Tensor, drive: Tensor, A_nd: Tensor, B: Tensor, buffers: Buffers) -> tuple[Tensor, Tensor]:
    """exp(delta A) as (l, g, b, n, d), and a buffer of states, one step longer, whose steps 1.. hold drive x B."""
    chunk_len, num_chunks, batch, channels = delta.shape
    shape = (num_chunks, batch, A_nd.shape[0], channels)
    decay = torch.mul(delta.unsqueeze(-2), A_nd, out=buffers.get("decay", (chunk_len, *shape), delta)).exp_()
    states = buffers.get("states", (chunk_len + 1, *shape), delta)
    torch.mul(drive.unsqueeze(-2), B.unsqueeze(-1), out=states[1:])
    return decay, states


def _total_decay(delta: Tensor, A_nd: Tensor) -> Tensor:
    """Decay over each whole chunk, (g, b, n, d)."""
    return (delta.sum(0).unsqueeze(-2) * A_nd).exp_()


def _chunk_starts(decay: Tensor, states: Tensor, delta: Tensor, A_nd: Tensor, first: Tensor) -> None:
    """Write the state before each chunk into states[0]."""
    entry = states[0]
    entry[0] = first
    if len(entry) == 1:
        return
    last = states[1].clone()  # the last state of each chunk had it started from zero
    for decay_l, drive_l in zip(decay[1:].unbind(), states[2:].unbind(), strict=True):
        torch.addcmul(drive_l, decay_l, last, out=last)
    total_decay = _total_decay(delta, A_nd)
    for chunk in range(1, len(entry)):
        torch.addcmul(last[chunk - 1], total_decay[chunk - 1], entry[chunk - 1], out=entry[chunk])


def _run(decay: Tensor, states: Tensor) -> None:
    """The recurrence, in place: states[l + 1] += decay[l] states[l]."""
    steps = states.unbind()
    for decay_l, before, after in zip(decay.unbind(), steps[:-1], steps[1:], strict=True):
        after.addcmul_(decay_l, before)


def _run_back(decay: Tensor, grads: Tensor, delta: Tensor, A_nd: Tensor, last: Tensor) -> None:
    """The recurrence backwards, in place: grads[l] += decay[l + 1] grads[l + 1], and `last` after the last chunk."""
    num_chunks = grads.shape[1]
    entry = torch.empty_like(grads[-1])  # what each chunk receives from the chunk after it
    entry[-1] = last
    if num_chunks > 1:
        first = grads[-1].clone()
        for decay_l, grads_l in zip(reversed(decay[1:].unbind()), reversed(grads[:-1].unbind()), strict=True):
            torch.addcmul(grads_l, decay_l, first, out=first)
        first.mul_(decay[0])
        total_decay = _total_decay(delta, A_nd)
        for chunk in range(num_chunks - 1, 0, -1):
            torch.addcmul(first[chunk], total_decay[chunk], entry[chunk], out=entry[chunk - 1])
    grads[-1] += entry
    steps, decays = grads.unbind(), decay.unbind()
    for position in range(len(steps) - 2, -1, -1):
        steps[position].addcmul_(decays[position + 1], steps[position + 1])


def _sum_state(weight_lgbn: Tensor, states_lgbnd: Tensor) -> Tensor:
    """Sum over n of weight x states, (l, g, b, d)."""
    product = torch.bmm(weight_lgbn.flatten(0, 2).unsqueeze(1), states_lgbnd.flatten(0, 2))
    return product.view(*states_lgbnd.shape[:3], -1)


def _sum_channel(states_lgbnd: Tensor, weight_lgbd: Tensor) -> Tensor:
    """Sum over d of states x weight, (l, g, b, n)."""
    product = torch.bmm(states_lgbnd.flatten(0, 2), weight_lgbd.flatten(0, 2).unsqueeze(2))
    return product.view(*states_lgbnd.shape[:3], -1)
