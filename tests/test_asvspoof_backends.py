"""The back ends beside the dual-stream model's: against independent, step-by-step computations."""

from __future__ import annotations

import pytest
import torch
from asvspoof_models import assert_close

from audiolab.tasks.asvspoof.backend import BiMamba
from audiolab.tasks.asvspoof.dual_column import DualColumnMamba
from audiolab.tasks.asvspoof.mhfa import MHFA

pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


def shaken(module):
    """Weights that are neither zero nor one, in eval mode."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def pool(x_td, attention):
    weights_t = torch.softmax(x_td @ attention.weight[0] + attention.bias, dim=0)
    return sum(weight * frame for weight, frame in zip(weights_t, x_td, strict=True))


def test_dual_column_is_add_norm_mamba_in_each_direction():
    """Add, then RMSNorm, then mixer, the residual handed on beside the output: as the paper draws it."""
    back_end, x_btd = shaken(DualColumnMamba(dim=8, num_blocks=3, d_state=4)), torch.randn(2, 7, 8)

    def rms_norm(x, norm):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight

    embeddings = []
    for x_td in x_btd:
        pooled = []
        columns = (back_end.forward_column, back_end.forward_attention, x_td)
        for column, attention, hidden in (
            columns,
            (back_end.backward_column, back_end.backward_attention, x_td.flip(0)),
        ):
            residual = torch.zeros_like(hidden)
            for block in column:
                residual = hidden + residual
                hidden = block.mamba(rms_norm(residual, block.norm)[None])[0]
            pooled.append(pool(rms_norm(hidden + residual, back_end.norm), attention))
        embeddings.append(back_end.join(torch.cat(pooled)))
    assert_close(back_end(x_btd), torch.stack(embeddings))


def test_dual_column_shares_nothing_between_directions_and_starts_small():
    back_end = DualColumnMamba(dim=16, num_blocks=4, d_state=4)
    names = {name for name, _ in back_end.named_parameters()}
    assert len([name for name in names if "mamba.A_log" in name]) == 8
    weight = back_end.forward_column[0].mamba.out_proj.weight
    assert 0.4 / 32**0.5 < weight.abs().max() <= 0.5 / 32**0.5  # U(-1, 1) / sqrt(inputs), divided by sqrt(blocks)


def test_mhfa_is_the_formula_of_the_paper():
    back_end = shaken(MHFA(in_dim=12, num_layers=3, num_heads=4, compressed_dim=5, dim=6))
    states_bltd = torch.randn(2, 3, 7, 12)
    embeddings = []
    for states_ltd in states_bltd:
        keys_td, values_td = (
            sum(w * state for w, state in zip(torch.softmax(logits, 0), states_ltd, strict=True)) @ m.weight.T + m.bias
            for logits, m in (
                (back_end.key_logits, back_end.compress_keys),
                (back_end.value_logits, back_end.compress_values),
            )
        )
        heads = []
        for head in range(4):
            logits_t = keys_td @ back_end.attention.weight[head] + back_end.attention.bias[head]
            heads.append((torch.softmax(logits_t, 0)[:, None] * values_td).sum(0))
        embeddings.append(back_end.output(torch.cat(heads)))
    assert_close(back_end(states_bltd), torch.stack(embeddings))


def test_mhfa_ignores_a_layer_of_no_weight():
    back_end, states_bltd = shaken(MHFA(in_dim=12, num_layers=3)), torch.randn(2, 3, 7, 12)
    back_end.key_logits.data[1] = back_end.value_logits.data[1] = -100.0
    other = states_bltd.clone()
    other[:, 1] = 5.0
    assert torch.equal(back_end(states_bltd), back_end(other))
    back_end.value_logits.data[1] = 0.0
    assert not torch.equal(back_end(states_bltd), back_end(other))


@pytest.mark.parametrize("back_end", [BiMamba(8, 2, d_state=4), DualColumnMamba(8, 2, d_state=4)])
def test_the_backward_direction_reads_from_the_end(back_end):
    """With the columns (or nothing, where they are one) exchanged, time reversed gives the same embedding."""
    back_end = shaken(back_end)
    x_btd = torch.randn(2, 9, 8)
    before = back_end(x_btd)
    if isinstance(back_end, DualColumnMamba):
        back_end.forward_column, back_end.backward_column = back_end.backward_column, back_end.forward_column
        back_end.forward_attention, back_end.backward_attention = (
            back_end.backward_attention,
            back_end.forward_attention,
        )
        back_end.join.weight.data = back_end.join.weight.data.roll(8, 1)
    assert_close(back_end(x_btd.flip(1)), before)
    assert not torch.allclose(back_end(x_btd.roll(3, 1)), before, atol=1e-3)
