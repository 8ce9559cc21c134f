"""Mamba (Gu & Dao 2023): the selective state-space layer that the tasks share."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiolab.errors import InputError
from audiolab.nn.by_hand import by_hand
from audiolab.nn.many_sequences import conv_silu, gated_scan
from audiolab.nn.selective_scan import selective_scan

_DT_MIN_S, _DT_MAX_S, _DT_FLOOR_S = 1e-3, 0.1, 1e-4  # range of the initial step size, as mamba_ssm


class MambaState(NamedTuple):
    """What `Mamba.step` remembers: the last d_conv - 1 inputs of the convolution, and the state of the scan."""

    conv_bdk: Tensor
    scan_bdn: Tensor


class Mamba(nn.Module):
    """Mamba block: (batch, time, d_model) -> (batch, time, d_model), causal, in linear time.

    Parameter names, shapes and initialisation are those of `mamba_ssm.Mamba`, so checkpoints move both ways. On CUDA
    its kernel runs when it can be imported (see `scan_backend`), else, and on every other device, the scan of
    `audiolab.nn.selective_scan`; the scan is float32 under autocast either way. dt_rank "auto" is ceil(d_model / 16).

    >>> layer = Mamba(d_model=8)
    >>> frames_btd = torch.linspace(-1, 1, 80).view(2, 5, 8)
    >>> out_btd = layer(frames_btd)
    >>> first_bd, state = layer.step(frames_btd[:, 0])
    >>> out_btd.shape, torch.allclose(first_bd, out_btd[:, 0], atol=1e-6)
    (torch.Size([2, 5, 8]), True)
    """

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, dt_rank: int | str = "auto"
    ) -> None:
        super().__init__()
        if isinstance(dt_rank, str):
            if dt_rank != "auto":
                raise InputError(f'Mamba got dt_rank={dt_rank!r}; give a positive number or "auto".')
            dt_rank = math.ceil(d_model / 16)
        self.d_model, self.d_state, self.d_conv, self.dt_rank = d_model, d_state, d_conv, dt_rank
        self.d_inner = d_inner = expand * d_model
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self._init_step_size()

    @torch.no_grad()
    def _init_step_size(self) -> None:
        """Step sizes after softplus log-uniform in 1 ms .. 100 ms of the layer's own time unit."""
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        nn.init.uniform_(self.dt_proj.bias, math.log(_DT_MIN_S), math.log(_DT_MAX_S))
        step = self.dt_proj.bias.exp().clamp(min=_DT_FLOOR_S)
        self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus

    def forward(self, features_btd: Tensor) -> Tensor:
        """Run whole sequences; every sequence starts from the zero state."""
        self._check(features_btd, "batch, time")
        if by_hand(features_btd) and len(features_btd) > self.d_inner:
            return self._side_by_side(features_btd)
        x_btd, gate_btd = self.in_proj(features_btd).chunk(2, dim=-1)
        x_bdt = self.conv1d(x_btd.transpose(1, 2))[..., : x_btd.shape[1]]
        x_btd = F.silu(x_bdt).transpose(1, 2).contiguous()
        dt_btd, B_btn, C_btn = self._scan_inputs(x_btd)
        y_btd = self._scan(x_btd, dt_btd, B_btn, C_btn, gate_btd)
        return self.out_proj(y_btd.to(gate_btd.dtype))

    def _side_by_side(self, features_btd: Tensor) -> Tensor:
        """`forward` with the sequences innermost in memory: faster where they outnumber the channels."""
        x_tdb, gate_tdb = _project(self.in_proj.weight, features_btd.permute(1, 2, 0)).chunk(2, dim=1)
        x_tdb = conv_silu(x_tdb, self.conv1d.weight[:, 0], self.conv1d.bias)
        widths = [self.dt_rank, self.d_state, self.d_state]
        dt_trb, B_tnb, C_tnb = _project(self.x_proj.weight, x_tdb).split(widths, dim=1)
        dt_tdb, A_dn = _project(self.dt_proj.weight, dt_trb), self._decay_rate(x_tdb.dtype)
        y_tdb = gated_scan(x_tdb, dt_tdb, A_dn, B_tnb, C_tnb, self.D, gate_tdb, self.dt_proj.bias)
        return _project(self.out_proj.weight, y_tdb).permute(2, 0, 1)

    def step(self, features_bd: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """One frame (batch, d_model) -> its output and the next state; equals `forward` frame by frame.

        `state` None starts a sequence. Streaming inference: constant time and memory a frame.
        """
        self._check(features_bd, "batch")
        x_bd, gate_bd = self.in_proj(features_bd).chunk(2, dim=-1)
        wide = torch.promote_types(x_bd.dtype, torch.float32)
        if state is None:
            state = MambaState(
                x_bd.new_zeros(*x_bd.shape, self.d_conv - 1),
                x_bd.new_zeros(*x_bd.shape, self.d_state, dtype=wide),
            )
        window_bdk = torch.cat([state.conv_bdk, x_bd.unsqueeze(-1)], dim=-1)
        x_bd = F.silu(F.conv1d(window_bdk, self.conv1d.weight, self.conv1d.bias, groups=self.d_inner)).squeeze(-1)
        dt_bd, B_bn, C_bn = self._scan_inputs(x_bd)
        delta_bd = F.softplus(dt_bd.to(wide) + self.dt_proj.bias.to(wide))
        decay_bdn = torch.exp(delta_bd.unsqueeze(-1) * self._decay_rate(wide))
        drive_bdn = (delta_bd * x_bd).unsqueeze(-1) * B_bn.to(wide).unsqueeze(1)
        scan_bdn = torch.addcmul(drive_bdn, decay_bdn, state.scan_bdn)
        y_bd = (scan_bdn * C_bn.to(wide).unsqueeze(1)).sum(-1) + self.D.to(wide) * x_bd
        y_bd = y_bd * F.silu(gate_bd.to(wide))
        return self.out_proj(y_bd.to(gate_bd.dtype)), MambaState(window_bdk[..., 1:], scan_bdn)

    def _scan_inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Step size (before bias and softplus), B and C, each (..., its width)."""
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return F.linear(dt, self.dt_proj.weight), B, C  # the bias is added in float32

    def _scan(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, gate: Tensor) -> Tensor:
        """silu(gate) (scan(x) + D x), in float32 or wider."""
        wide = torch.promote_types(x.dtype, torch.float32)
        x, dt, B, C, gate = (tensor.to(wide) for tensor in (x, dt, B, C, gate))
        A, D, dt_bias = self._decay_rate(wide), self.D.to(wide), self.dt_proj.bias.to(wide)
        kernel = _load_kernel()[0] if x.is_cuda and wide == torch.float32 else None
        if kernel is not None:
            return scan_with_kernel(kernel, x, dt, A, B, C, D, gate, dt_bias)
        y, _ = selective_scan(x, F.softplus(dt + dt_bias), A, B, C)
        return torch.addcmul(y, D, x) * F.silu(gate)

    def _decay_rate(self, dtype: torch.dtype) -> Tensor:
        """A of the paper, (channel, state), negative."""
        return -torch.exp(self.A_log.to(dtype))

    def _check(self, features: Tensor, axes: str) -> None:
        if features.ndim != axes.count(",") + 2 or features.shape[-1] != self.d_model or features.shape[-2] == 0:
            raise InputError(f"Mamba wants ({axes}, {self.d_model}) here and got {tuple(features.shape)}.")


def _project(weight_ed: Tensor, x_tdb: Tensor) -> Tensor:
    """weight x, for every step; `matmul` would copy x to bring its channels to the end."""
    return torch.bmm(weight_ed.expand(len(x_tdb), -1, -1), x_tdb)


def scan_with_kernel(
    kernel: Callable[..., Tensor],
    x_btd: Tensor,
    dt_btd: Tensor,
    A_dn: Tensor,
    B_btn: Tensor,
    C_btn: Tensor,
    D_d: Tensor,
    gate_btd: Tensor,
    dt_bias_d: Tensor,
) -> Tensor:
    """Call `mamba_ssm`'s `selective_scan_fn`: time last; step bias, softplus, D and gate are applied inside."""
    x_bdt, dt_bdt, B_bnt, C_bnt, gate_bdt = (
        tensor.transpose(1, 2).contiguous() for tensor in (x_btd, dt_btd, B_btn, C_btn, gate_btd)
    )
    options = {"D": D_d, "z": gate_bdt, "delta_bias": dt_bias_d, "delta_softplus": True}
    return kernel(x_bdt, dt_bdt, A_dn, B_bnt, C_bnt, **options).transpose(1, 2)


def scan_backend(device: str | torch.device) -> str:
    """Which scan `Mamba` runs on a device and, where it is not the CUDA kernel, why.

    >>> scan_backend("cpu")
    'pure PyTorch (the mamba_ssm kernel needs CUDA)'
    """
    if torch.device(device).type != "cuda":
        return "pure PyTorch (the mamba_ssm kernel needs CUDA)"
    kernel, reason = _load_kernel()
    return "mamba_ssm kernel" if kernel is not None else f"pure PyTorch ({reason})"


@functools.cache
def _load_kernel() -> tuple[Callable[..., Tensor] | None, str]:
    """The kernel of mamba_ssm, or None and the reason; an installed but broken one is worth a warning, once."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ModuleNotFoundError as error:
        if error.name == "mamba_ssm":
            return None, "mamba_ssm is not installed"
        return None, _broken(error)
    except Exception as error:  # a compiled extension for another torch or CUDA fails with anything
        return None, _broken(error)
    return selective_scan_fn, ""


def _broken(error: Exception) -> str:
    reason = f"mamba_ssm is installed but cannot be imported: {type(error).__name__}: {error}"
    warnings.warn(f"{reason}. Mamba runs its slower pure-PyTorch scan.", RuntimeWarning, stacklevel=2)
    return reason
