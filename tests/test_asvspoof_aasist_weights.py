"""Weights of the public AASIST code: every name has a place, and files that do not fit are explained."""

from __future__ import annotations

import pytest
import torch

from audiolab import build, config
from audiolab.errors import InputError
from audiolab.tasks.asvspoof.aasist import AASIST
from audiolab.tasks.asvspoof.aasist_backend import AASISTBackEnd
from audiolab.tasks.asvspoof.aasist_weights import state_from_official
from audiolab.tasks.asvspoof.sinc import SincStream

ATTENTION = ["att_proj", "proj_with_att", "proj_without_att"]
HETEROGENEOUS = [*ATTENTION, "proj_type1", "proj_type2", "att_projM", "proj_with_attM", "proj_without_attM"]


def norm_of(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.{leaf}": (dim,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {f"{name}.num_batches_tracked": ()}


def official_shapes(channels: list[int], graph_dim: int, stack_dim: int, num_bands: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a state dict of the public code, as its published files have them."""
    shapes: dict[str, tuple[int, ...]] = {"pos_S": (1, num_bands, channels[-1])}
    shapes |= {"master1": (1, 1, graph_dim), "master2": (1, 1, graph_dim)} | norm_of("first_bn", 1)

    def linear(name: str, in_dim: int, out_dim: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out_dim, in_dim), f"{name}.bias": (out_dim,)}

    for i, (before, after) in enumerate(zip([1, *channels], channels, strict=False)):
        block = f"encoder.{i}.0"
        shapes |= {f"{block}.conv1.weight": (after, before, 2, 3), f"{block}.conv1.bias": (after,)}
        shapes |= {f"{block}.conv2.weight": (after, after, 2, 3), f"{block}.conv2.bias": (after,)}
        shapes |= norm_of(f"{block}.bn2", after) | (norm_of(f"{block}.bn1", before) if i else {})
        if before != after:
            down = f"{block}.conv_downsample"
            shapes |= {f"{down}.weight": (after, before, 1, 3), f"{down}.bias": (after,)}
    for name in ("GAT_layer_S", "GAT_layer_T"):
        for leaf in ATTENTION:
            shapes |= linear(f"{name}.{leaf}", channels[-1], graph_dim)
        shapes |= {f"{name}.att_weight": (graph_dim, 1)} | norm_of(f"{name}.bn", graph_dim)
    for branch in "12":
        for layer, in_dim in (("1", graph_dim), ("2", stack_dim)):
            name = f"HtrgGAT_layer_ST{branch}{layer}"
            for leaf in HETEROGENEOUS:
                shapes |= linear(f"{name}.{leaf}", in_dim, in_dim if "type" in leaf else stack_dim)
            shapes |= {f"{name}.att_weight{kind}": (stack_dim, 1) for kind in ("11", "22", "12", "M")}
            shapes |= norm_of(f"{name}.bn", stack_dim)
    for pool, dim in (("S", graph_dim), ("T", graph_dim), *((f"h{g}{b}", stack_dim) for g in "ST" for b in "12")):
        shapes |= linear(f"pool_{pool}.proj", dim, 1)
    return shapes | linear("out_layer", 5 * stack_dim, 2)


def official_state(**changes) -> dict[str, torch.Tensor]:
    sizes = {"channels": [32, 32, 64, 64, 64, 64], "graph_dim": 64, "stack_dim": 32, "num_bands": 23} | changes
    shapes = official_shapes(**sizes)
    return {name: torch.rand(shape) if shape else torch.tensor(7) for name, shape in shapes.items()}


def test_published_weights_fill_every_place(tmp_path):
    state = official_state()
    torch.save(state, tmp_path / "AASIST.pth")
    overrides = ["task=asvspoof", "model=asvspoof/aasist", f"model.pretrained={tmp_path / 'AASIST.pth'}"]
    ours = build.build(config.compose_run(overrides, "x")["model"]).state_dict()
    assert sum(value.numel() for value in state.values()) == sum(value.numel() for value in ours.values())
    places = {
        "master2": "graphs.branches.1.stack",
        "encoder.3.0.bn1.running_var": "sinc.blocks.3.norm1.0.running_var",
        "encoder.2.0.conv_downsample.weight": "sinc.blocks.2.skip.weight",
        "GAT_layer_T.proj_with_att.weight": "graphs.temporal.project.aggregate.weight",
        "HtrgGAT_layer_ST21.proj_type2.weight": "graphs.branches.1.opening.second.weight",
        "HtrgGAT_layer_ST12.proj_without_attM.bias": "graphs.branches.0.closing.keep_stack.bias",
        "pool_hT1.proj.weight": "graphs.branches.0.pool_temporal.score.weight",
        "out_layer.bias": "classifier.bias",
    }
    for theirs, name in places.items():
        assert torch.equal(state[theirs], ours[name]), theirs
    scores = [state[f"HtrgGAT_layer_ST22.att_weight{kind}"][:, 0] for kind in ("11", "22", "12")]
    assert torch.equal(torch.stack(scores), ours["graphs.branches.1.closing.score.weight"])
    assert torch.equal(
        state["HtrgGAT_layer_ST22.att_weightM"].t(), ours["graphs.branches.1.closing.score_stack.weight"]
    )


def test_the_back_end_takes_the_same_names():
    state = official_state(num_bands=42) | norm_of_tensors("first_bn1", 64)
    for name, shape in {"LL": (128, 1024), "attention.0": (128, 64, 1, 1), "attention.3": (64, 128, 1, 1)}.items():
        state |= {f"{name}.weight": torch.rand(shape), f"{name}.bias": torch.rand(shape[0])}
    state |= norm_of_tensors("attention.2", 128)
    renamed = state_from_official(state, encoder="")
    assert {"classifier.weight", "classifier.bias"} <= set(renamed)
    kept = {name: value for name, value in renamed.items() if not name.startswith("classifier.")}
    AASISTBackEnd(1024).load_state_dict(kept, strict=True)


def norm_of_tensors(name: str, dim: int) -> dict[str, torch.Tensor]:
    return {key: torch.rand(shape) for key, shape in norm_of(name, dim).items()}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state.pop("pool_T.proj.bias"), "lacks graphs.pool_temporal.score.bias"),
        (lambda state: state.pop("HtrgGAT_layer_ST11.att_weight12"), "lack att_weight12 of graphs.branches.0.opening"),
        (lambda state: state.update(conv_time=torch.zeros(1)), "'conv_time' is not a weight of AASIST"),
        (lambda state: state.update(epoch=3), "not a state dict of tensors"),
        (lambda state: state.update(pos_S=torch.zeros(1, 23, 24)), r"shape \(1, 23, 24\), the model \(1, 23, 64\)"),
    ],
)
def test_other_weights_are_refused(change, match, tmp_path):
    state = official_state()
    change(state)
    torch.save(state, tmp_path / "AASIST.pth")
    with pytest.raises(InputError, match=match):
        AASIST(SincStream(), pretrained=str(tmp_path / "AASIST.pth"))


def test_unreadable_or_unsuitable_weights_are_explained(tmp_path):
    with pytest.raises(InputError, match="is not a file"):
        AASIST(SincStream(), pretrained=str(tmp_path / "none.pth"))
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="cannot be read as weights"):
        AASIST(SincStream(), pretrained=str(tmp_path / "pointer.pth"))
    with pytest.raises(InputError, match="pre_activation=false"):
        AASIST(SincStream(pre_activation=True), pretrained=str(tmp_path / "pointer.pth"))
