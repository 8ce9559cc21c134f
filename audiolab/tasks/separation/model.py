"""Conv-TasNet: masks on a learned filterbank from dilated convolutions (Luo and Mesgarani 2019, arXiv:1809.07454).

Shapes: b batch, s speaker, n filters, c channels, t time or frames.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor, nn

from audiolab.errors import InputError
from audiolab.nn.layer_norm import NormName, make_norm
from audiolab.tasks.separation.blocks import Block
from audiolab.tasks.separation.framing import Framing, Padding
from audiolab.tasks.separation.library_weights import read_library
from audiolab.tasks.separation.output import Output
from audiolab.tasks.separation.separator import Separator

if TYPE_CHECKING:
    from audiolab.tasks.separation.streaming import ConvTasNetStream

logger = logging.getLogger(__name__)

Mask = Literal["relu", "sigmoid", "softmax"]
_NO_EPS = 1e-24  # a causal model's first norm meets every level: its eps only keeps digital silence from 0 / 0


class ConvTasNet(Separator):
    """Encoder, `repeats` stacks of `blocks` blocks whose dilation doubles, masks, decoder.

    Without arguments the paper's form for two speakers, 5,050,545 parameters. Parameters have the neutral names to
    which `library_weights` brings those of other libraries. Raises InputError for options that contradict each other.

    >>> import torch
    >>> ConvTasNet(32, bottleneck=16, hidden=32, skip=16, blocks=2, repeats=1)(torch.zeros(1, 100)).shape
    torch.Size([1, 2, 100])
    """

    def __init__(
        self,
        num_filters: int = 512,
        kernel_size: int = 16,
        stride: int = 8,
        bottleneck: int = 128,
        hidden: int = 512,
        skip: int = 128,
        block_kernel: int = 3,
        blocks: int = 8,
        repeats: int = 3,
        norm: NormName = "gLN",
        mask: Mask = "sigmoid",
        num_speakers: int = 2,
        causal: bool = False,
        norm_first: bool = False,
        depthwise_bias: bool = True,
        last_residual: bool = True,
        encoder_relu: bool = False,
        padding: Padding = "full",
        input_eps: float | None = None,
        output: Output = "as_is",
        recompute: bool = False,
    ) -> None:
        super().__init__(num_speakers, output, causal=causal)
        sizes = {"num_filters": num_filters, "kernel_size": kernel_size, "stride": stride, "bottleneck": bottleneck}
        sizes |= {"hidden": hidden, "block_kernel": block_kernel, "blocks": blocks, "repeats": repeats}
        _check_values(sizes, skip, {"norm": norm, "mask": mask, "padding": padding})
        _check_together(kernel_size, stride, padding, norm, causal=causal, skip=skip, last_residual=last_residual)
        if recompute and norm == "BN":
            raise InputError(
                "model.recompute=true would count each batch twice in model.norm=BN: give one or the other"
            )
        self.options = {"stride": stride, "blocks": blocks, "repeats": repeats, "norm": norm, "mask": mask}
        self.options |= {"causal": causal, "norm_first": norm_first, "encoder_relu": encoder_relu, "padding": padding}
        self.framing = Framing(kernel_size, stride, padding)
        self.mask_kind, self.encoder_relu = mask, encoder_relu
        self.encoder = nn.Conv1d(1, num_filters, kernel_size, stride, bias=False)
        self.input_norm = make_norm(norm, num_filters, _NO_EPS if causal and input_eps is None else input_eps)
        self.bottleneck = nn.Conv1d(num_filters, bottleneck, 1)
        self.norm_first, self.dilations = norm_first, [2**i for _ in range(repeats) for i in range(blocks)]
        self.blocks = nn.ModuleList(
            Block(
                bottleneck,
                hidden,
                skip,
                block_kernel,
                dilation,
                norm,
                causal=causal,
                norm_first=norm_first,
                depthwise_bias=depthwise_bias,
                residual=last_residual or i < len(self.dilations) - 1,
                recompute=recompute,
            )
            for i, dilation in enumerate(self.dilations)
        )
        self.mask_act = nn.PReLU()
        self.mask = nn.Conv1d(skip or bottleneck, num_speakers * num_filters, 1)
        self.decoder = nn.ConvTranspose1d(num_filters, 1, kernel_size, stride, bias=False)

    @classmethod
    def from_library(cls, path: str | Path, **options: Any) -> ConvTasNet:
        """Build the model whose weights another library wrote to a file, with the outputs that it gives there.

        torchaudio, asteroid, the paper's authors and the seed project are known. `options` are those that the file
        does not tell or tells wrongly: the activation of the masks, a stride that is not half a kernel, how many blocks
        make a repeat. Raises InputError for any other file, and for options that do not fit it.
        """
        found = read_library(Path(path))
        if found is None:
            raise InputError(
                f"{path} holds no ConvTasNet of torchaudio, asteroid, naplab or the seed project: give one"
            )
        options = found.options | options
        num_blocks = 1 + max(int(name.split(".")[1]) for name in found.weights if name.startswith("blocks."))
        if "blocks" in options and "repeats" not in options:
            options["repeats"] = num_blocks // options["blocks"]
        if options.get("blocks", 0) * options.get("repeats", 0) != num_blocks:
            raise InputError(f"{path} has {num_blocks} blocks: give blocks=, how many of them make a repeat")
        if "mask" not in options:
            raise InputError(f"{path} does not tell the activation of its masks: give mask=relu or mask=sigmoid")
        model = cls(**options)
        try:
            model.load_state_dict(found.weights)
        except RuntimeError as error:
            raise InputError(
                f"{path} does not fit the options {options}: {str(error).splitlines()[1].strip()}"
            ) from error
        return model.eval()

    def foreign_weights(self, path: Path) -> dict[str, Tensor] | None:
        """Return a library's weights under the names of this model, None for a file of no such library.

        Warns of options under which this model would not compute with them what the library does.
        """
        found = read_library(path)
        if found is None:
            return None
        told = {name: value for name, value in found.options.items() if self.options.get(name, value) != value}
        if told:
            there = " ".join(
                f"model.{name}={str(value).lower() if value in (0, 1) else value}" for name, value in told.items()
            )
            logger.warning("%s are weights of %s's ConvTasNet with %s, which differs here", path, found.library, there)
        return found.weights

    def stream(self) -> ConvTasNetStream:
        """Begin a recording that arrives in chunks. Raises InputError unless the model is causal."""
        from audiolab.tasks.separation.streaming import ConvTasNetStream

        return ConvTasNetStream(self)

    def facts(self, sample_rate_hz: int) -> dict[str, str]:
        """Return work, the span of samples that a frame of the masks depends on and, of a causal model, latency.

        >>> for what, value in ConvTasNet(norm="cLN", causal=True).facts(8000).items():
        ...     print(what, value)
        multiply-adds a second of audio, 10^9 4.98
        receptive field without norms, s 1.532
        latency of a stream, ms 2.0
        """
        kernel, stride = self.framing.kernel_size, self.framing.stride
        reach_samples = (self.receptive_field_frames - 1) * stride + kernel
        told = {
            "multiply-adds a second of audio, 10^9": f"{self.macs_per_frame * sample_rate_hz / stride / 1e9:.3g}",
            "receptive field without norms, s": f"{reach_samples / sample_rate_hz:.3f}",
        }
        if self.causal:
            told["latency of a stream, ms"] = f"{self.stream().latency_samples / sample_rate_hz * 1000:.1f}"
        return told

    @property
    def receptive_field_frames(self) -> int:
        """Frames of the filterbank that one frame of the masks depends on, apart from a global norm's."""
        return 1 + (self.blocks[0].depthwise.kernel_size[0] - 1) * sum(self.dilations)

    @property
    def macs_per_frame(self) -> int:
        """Multiplications of all convolutions for one frame."""
        weights = [module.weight.numel() for module in self.modules() if isinstance(module, nn.Conv1d)]
        return sum(weights) + self.num_speakers * self.decoder.weight.numel()

    def separate(self, wave_bt: Tensor) -> Tensor:
        """Waveform (batch, time) -> estimates (batch, speaker, time), at the level of the input."""
        encoded_bnt = self.encode(self.framing.pad(wave_bt))
        estimate_bst = self.decode(self.masks(encoded_bnt), encoded_bnt)
        return self.framing.crop(estimate_bst, wave_bt.shape[-1])

    def encode(self, padded_bt: Tensor) -> Tensor:
        """Waveform that spans whole frames -> filterbank (batch, filter, frame)."""
        encoded_bnt = self.encoder(padded_bt[:, None])
        return encoded_bnt.relu() if self.encoder_relu else encoded_bnt

    def masks(self, encoded_bnt: Tensor) -> Tensor:
        """Filterbank -> masks (batch, speaker, filter, frame)."""
        x_bct = self.bottleneck(self.input_norm(encoded_bnt))
        skips_bct = None
        for block in self.blocks:
            residual, skip = block(x_bct)
            x_bct = x_bct if residual is None else x_bct + residual
            skips_bct = skip if skips_bct is None else skips_bct + skip
        return self.mask_of(x_bct if skips_bct is None else skips_bct)

    def mask_of(self, features_bct: Tensor) -> Tensor:
        """Sum of the skips, or without them the last residual output -> masks (batch, speaker, filter, frame)."""
        mask_bsnt = self.mask(self.mask_act(features_bct)).unflatten(1, (self.num_speakers, -1))
        if self.mask_kind == "softmax":
            return mask_bsnt.softmax(1)
        return mask_bsnt.relu() if self.mask_kind == "relu" else mask_bsnt.sigmoid()

    def decode(self, mask_bsnt: Tensor, encoded_bnt: Tensor) -> Tensor:
        """Masks and filterbank -> estimates (batch, speaker, time) over the span of the frames."""
        masked_bsnt = mask_bsnt * encoded_bnt[:, None]
        return self.decoder(masked_bsnt.flatten(0, 1)).unflatten(0, mask_bsnt.shape[:2])[:, :, 0]


def _check_values(sizes: dict[str, int], skip: int, words: dict[str, str]) -> None:
    """Refuse sizes and words that are outside what there is."""
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"model.{name}={size} does not fit: give a whole number from 1 up")
    if skip < 0:
        raise InputError(f"model.skip={skip} does not fit: give channels of the skip path, 0 for none")
    for (name, word), kind in zip(words.items(), (NormName, Mask, Padding), strict=True):
        if word not in get_args(kind):
            raise InputError(f"model.{name}={word!r} does not fit: give one of {', '.join(get_args(kind))}")


def _check_together(
    kernel_size: int, stride: int, padding: str, norm: str, *, causal: bool, skip: int, last_residual: bool
) -> None:
    """Refuse options that contradict each other."""
    if stride > kernel_size:
        raise InputError(
            f"model.stride={stride} would leave samples between frames of model.kernel_size={kernel_size}: give at "
            "most that, half of it as a rule"
        )
    if padding == "windows" and 2 * stride != kernel_size:
        raise InputError(
            f"model.padding=windows is defined for a stride of half a kernel, not {stride} of {kernel_size}: give "
            "model.padding=full"
        )
    if causal and norm in ("gLN", "BN"):
        seen = "the whole recording" if norm == "gLN" else "whole batches in training"
        raise InputError(
            f"model.norm={norm} looks at {seen}, which a causal model cannot: give model.norm=cLN (or channelwise), or "
            "model.causal=false"
        )
    if not skip and not last_residual:
        raise InputError(
            "model.skip=0 takes the masks from the last residual output, which model.last_residual=false leaves out: "
            "give model.last_residual=true, or a skip path"
        )
