"""Weights alone, starting from them, and what must not happen when any file of weights is read: code that runs."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from asvspoof_models import TINY_WAVLM
from conftest_corpus import make_tiny_la
from safetensors.torch import load_file, save_file
from test_run import options
from torch import nn

import audiolab
from audiolab import assemble, config, launch, run
from audiolab.errors import InputError, RunError
from audiolab.folder import RunFolder
from audiolab.tasks.asvspoof.aasist import AASIST
from audiolab.tasks.asvspoof.sinc import SincStream
from audiolab.tasks.asvspoof.ssl import SSLStream
from audiolab.training.weights import load_weights, read_facts, read_weights, start_from, write_weights

PACKAGE = Path(__file__).resolve().parent.parent / "audiolab"
FACTS = {"task": "t", "recipe": "r", "name": "größe", "audiolab": "0", "config_sha256": "0", "checkpoint": "best.ckpt"}


class Tied(nn.Module):
    """Input and output embedding are one parameter."""

    def __init__(self, num_words: int = 5):
        super().__init__()
        self.embed = nn.Embedding(num_words, 300)
        self.norm = nn.BatchNorm1d(300)
        self.out = nn.Linear(300, num_words, bias=False)
        self.out.weight = self.embed.weight


def test_weights_come_back_to_the_bit_whatever_memory_they_share(tmp_path: Path):
    g = torch.Generator().manual_seed(0)
    base = torch.randn(3, 4, generator=g)
    state = {"base": base, "row": base[1], "turned": base.t(), "flat": base.view(-1), "same": base, "empty": base[:0]}
    state |= {"number": torch.tensor(7), "flag": torch.tensor([True]), "complex": torch.randn(2, dtype=torch.cfloat)}
    state |= {"half": base.bfloat16(), "double": base.double() / 3, "nan": torch.tensor([float("nan"), -0.0])}
    for attempt in ("a", "b"):
        write_weights(tmp_path / f"{attempt}.safetensors", state, FACTS)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    (tmp_path / "any").touch()  # others may read the weights as they may any file
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode
    assert read_facts(tmp_path / "a.safetensors") == FACTS
    found = read_weights(tmp_path / "a.safetensors")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        bits = [value.contiguous().clone().view(-1).view(torch.uint8) for value in (found[name], tensor)]
        assert torch.equal(*bits), name


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path):
    torch.manual_seed(1)
    model, other = Tied(), Tied()
    path = tmp_path / "tied.safetensors"
    write_weights(path, model.state_dict(), FACTS)
    assert set(load_file(path)) == set(model.state_dict()) - {"out.weight"}
    load_weights(other, path)
    assert torch.equal(other.out.weight, model.embed.weight) and other.out.weight is other.embed.weight


def test_a_full_disk_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    write_weights(path, {"w": torch.ones(2)}, FACTS)
    before = path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RunError, match="w.safetensors cannot be written .* Make room"):
            write_weights(path, {"w": torch.ones(10_000)}, FACTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_damaged_and_other_files_are_refused(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match="does not exist"):
        read_weights(path)
    write_weights(path, {"w": torch.ones(100)}, FACTS)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:20], b"\xff" * 50, pickle.dumps({"w": 1})):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be read as safetensors"):
            read_weights(path)
    torch.save({"state_dict": {"w": 3}}, tmp_path / "w.ckpt")
    with pytest.raises(InputError, match="not one of tensors alone"):
        read_weights(tmp_path / "w.ckpt")


def parts(**sizes: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(2, size) for name, size in sizes.items()})


@pytest.mark.parametrize(
    ("there", "missing", "unexpected", "expected"),
    [
        ({"body": 3, "head": 2}, [], [], "4 of 4 names start from"),
        ({"body": 3}, ["head."], [], "2 of 4 names start from .*; 2 keep their own start: head.weight, head.bias"),
        ({"body": 3, "head": 7}, ["head"], [], "2 of 4 .* 2 keep their own start"),
        ({"body": 3, "head": 2, "old": 1}, [], ["*bias", "old.w"], "2 of the file are left out: old.bias, old.weight"),
    ],
)
def test_a_model_starts_from_what_is_allowed(tmp_path: Path, there, missing, unexpected, expected):
    given, model = parts(**there), parts(body=3, head=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    write_weights(tmp_path / "w.safetensors", given.state_dict(), {})
    said = start_from(model, tmp_path / "w.safetensors", missing, unexpected)
    assert re.search(expected, said), said
    for name, value in model.state_dict().items():
        kept = name.startswith("head") and bool(missing)
        assert torch.equal(value, before[name] if kept else given.state_dict()[name]), name


@pytest.mark.parametrize(
    ("there", "missing", "unexpected", "expected"),
    [
        (
            {"body": 3},
            [],
            [],
            r"2 missing there \(first: head.weight\), which init.allow_missing=\[head.\] allows",
        ),
        ({"body": 3}, ["head.w"], [], r"1 missing there \(first: head.bias\)"),
        (
            {"body": 3, "head": 7},
            [],
            [],
            r"2 of another shape there \(first: head.weight 7x2, here 2x2\), which",
        ),
        ({"body": 3, "head": 2, "old": 1}, [], [], r"2 without a place .* init.allow_unexpected=\[old.\] allows"),
        ({"body": 3, "head": 2, "old": 1}, ["old."], ["old."], "init.allow_missing: 'old.' matches nothing that is m"),
        ({"body": 3}, ["head."], ["hed."], "init.allow_unexpected: 'hed.' matches nothing that is only in"),
        (
            {"body": 3, "head": 7, "old": 1, "older": 1},
            [],
            ["old.w"],
            r"init.allow_missing=\[head.\] allows; 3 without .* init.allow_unexpected=\[old.,older.\] allows",
        ),
        ({"old": 3}, ["*"], ["*"], "has nothing in common with this model"),
    ],
)
def test_what_is_not_allowed_is_named_with_its_remedy(tmp_path: Path, there, missing, unexpected, expected):
    write_weights(tmp_path / "w.safetensors", parts(**there).state_dict(), {})
    model = parts(body=3, head=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=expected):
        start_from(model, tmp_path / "w.safetensors", missing, unexpected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_adapters_start_on_the_weights_of_a_model_without(tmp_path: Path):
    options = {"freeze_layers": "all"}
    torch.manual_seed(0)
    plain = SSLStream(None, TINY_WAVLM, **options)
    write_weights(tmp_path / "w.safetensors", plain.state_dict(), {})
    torch.manual_seed(1)
    adapted = SSLStream(None, TINY_WAVLM, lora={"r": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj"]}, **options)
    assert "6 keep their own start" in start_from(adapted, tmp_path / "w.safetensors", ["*.lora_"])
    wave_bt = torch.randn(1, 4000)
    with torch.no_grad():  # with a graph, attention takes another kernel
        assert torch.equal(plain.eval()(wave_bt), adapted.eval()(wave_bt))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, la_mini: Path) -> Path:
    """A finished run of one epoch; read only."""
    base = tmp_path_factory.mktemp("weights")
    root = make_tiny_la(la_mini, base / "tiny_la")
    assert run.main([*options(root, base, "name=first"), "trainer.max_epochs=1"]) == 0
    return base / "out/asvspoof/first"


def again(finished: Path, out: Path, *more: str) -> list[str]:
    root = RunFolder.open(finished).config["data"]["root"]
    return [*options(root, out), "trainer.max_epochs=1", "seed=5", *more]


def test_a_run_starts_from_another_and_goes_on_without_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = tmp_path / "source"
    shutil.copytree(finished, source)
    argv = again(finished, tmp_path, "name=second", f"init.weights={source}", "loss=asvspoof/oc_softmax")
    argv += ["init.allow_missing=[criterion.]", "callbacks=ema"]
    weights = read_weights(source / "checkpoints/best.ckpt")
    shared = [name for name in weights if not name.startswith("criterion.")]
    task, said = assemble.begin_task(config.compose_run(argv, "second"))
    assert f"{len(shared)} of {len(task.state_dict())} names start from {source}/checkpoints/best.ckpt" in said
    assert "1 keep their own start: criterion.centre" in said.replace("center", "centre")
    assert all(torch.equal(task.state_dict()[name], weights[name]) for name in shared)
    assert run.main(argv) == 0
    folder = tmp_path / "out/asvspoof/second"
    assert said in capsys.readouterr().out and said in (folder / "run.log").read_text()
    trained = read_weights(folder / "checkpoints/last.ckpt")
    assert not all(torch.equal(trained[name], weights[name]) for name in shared)
    metrics = (folder / "metrics.json").read_text()
    (folder / "metrics.json").unlink()
    shutil.rmtree(source)  # it has its own checkpoint now
    assert run.main(argv) == 0
    assert (folder / "metrics.json").read_text() == metrics


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["init.weights=/nowhere/run"], "/nowhere/run does not exist"),
        (["init.weights=/nowhere/w.safetensors"], "/nowhere/w.safetensors does not exist"),
        (["init.weights={run}", "model.back_end.dim=16"], r"of another shape there \(first: model.*allow_missing="),
        (["init.weights={run}", "init.allow_missing=[model.x]"], "'model.x' matches nothing that is missing from"),
        (["init.weights={run}", "init.allow_missing=model"], "give a list of beginnings of names"),
        (["init.allow_missing=[model.]"], "no effect without init.weights"),
        (["init.wights=x"], "did you mean init.weights"),
        (["init.weights=3"], "init.weights=3 does not fit"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_is_written(finished: Path, tmp_path: Path, more, expected):
    with pytest.raises(InputError, match=expected):
        run.main([*again(finished, tmp_path, "name=x"), *(text.replace("{run}", str(finished)) for text in more)])
    assert not (tmp_path / "out").exists()


def test_pretrained_weights_that_would_be_replaced_are_not_read(finished: Path, tmp_path: Path):
    SSLStream(None, TINY_WAVLM).encoder.save_pretrained(tmp_path / "encoder")
    tiny = ["model=asvspoof/wavlm_mhfa_tiny", f"model.front_end.pretrained={tmp_path / 'encoder'}"]
    tiny += ["model.front_end.config=null", "model.back_end.in_dim=16", "model.back_end.num_layers=4"]
    assert run.main(again(finished, tmp_path, "name=a", *tiny)) == 0
    shutil.rmtree(tmp_path / "encoder")
    argv = again(finished, tmp_path, "name=b", *tiny, f"init.weights={tmp_path / 'out/asvspoof/a'}")
    task, _ = assemble.begin_task(config.compose_run(argv, "b"))
    best = read_weights(RunFolder.open(tmp_path / "out/asvspoof/a").best_checkpoint)
    assert all(torch.equal(value, best[name]) for name, value in task.state_dict().items())


# What could run code ---------------------------------------------------------------------------------------------

FORBIDDEN = {  # names of calls by their last parts; each can execute what a file holds
    "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "dill.loads", "cloudpickle.load",
    "marshal.load", "marshal.loads", "shelve.open", "hub.load", "jit.load", "read_pickle", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "load_from_checkpoint", "torch.package.PackageImporter",
}  # fmt: skip
SAFE_WITH = {  # calls that are safe with these keywords as constants only
    "torch.load": {"weights_only": True},
    "from_pretrained": {"weights_only": True},
    "np.load": {"allow_pickle": False},
    "numpy.load": {"allow_pickle": False},
}
NEEDS_FLAG_WITH = "ckpt_path"  # trainer.fit, validate, test: then weights_only=True


def dangers(source: str) -> list[str]:
    """The calls in a source text that could run code from a file."""
    found = []
    tree = ast.parse(source)
    aliases = {}  # `from torch import load as x`, `import numpy as n`
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        head, *rest = ast.unparse(node.func).split(".")
        name = ".".join([aliases.get(head, head), *rest])
        flags = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        wanted = next((flag for call, flag in SAFE_WITH.items() if f".{name}".endswith(f".{call}")), {})
        if NEEDS_FLAG_WITH in flags:
            wanted = {"weights_only": True}
        bad = any(f".{name}".endswith(f".{call}") for call in FORBIDDEN if call not in ("eval", "exec"))
        bad |= name in ("eval", "exec") or flags.get("trust_remote_code") is True or flags.get("allow_pickle") is True
        writes = name.endswith(".save_checkpoint")  # where it says how much is kept
        bad |= flags.get("weights_only", True) is not True and not writes
        if bad or any(flags.get(flag) is not value for flag, value in wanted.items()):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "from torch import load\nload(path)",
        "import torch as t\nt.load(path)",
        "Task.load_from_checkpoint(path)",
        "from pickle import loads as l\nl(data)",
        "import numpy as n\nn.load(path)",
        "np.load(path, allow_pickle=True)",
        "joblib.load(path)",
        "pd.read_pickle(path)",
        "torch.hub.load('a/b', 'c')",
        "torch.jit.load(path)",
        "AutoModel.from_pretrained(path)",
        "AutoModel.from_pretrained(path, weights_only=True, trust_remote_code=True)",
        "trainer.fit(task, data, ckpt_path=path)",
        "eval(text)",
    ],
)
def test_the_search_finds_what_could_run_code(source: str):
    assert len(dangers(source)) == 1


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_call_could_run_code_from_a_file(path: Path):
    assert not dangers(path.read_text(encoding="utf-8"))
    assert dangers("model.eval()") == [] and dangers("json.load(file)") == []


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def evil_checkpoint(path: Path, trace: Path, key: str | None = "state_dict") -> None:
    torch.save({key: Evil(trace)} if key else Evil(trace), path, pickle_module=pickle)


def test_a_malicious_pickle_does_act_without_protection(tmp_path: Path):
    evil_checkpoint(tmp_path / "x.ckpt", tmp_path / "hacked")
    torch.load(tmp_path / "x.ckpt", weights_only=False)
    assert (tmp_path / "hacked").exists()  # so the tests below can fail


def test_malicious_weights_are_refused_wherever_weights_are_read(finished: Path, tmp_path: Path):
    trace, copy = tmp_path / "hacked", tmp_path / "copy"
    shutil.copytree(finished, copy)
    for checkpoint in (copy / "checkpoints").glob("*.ckpt"):
        evil_checkpoint(checkpoint, trace)
    with pytest.raises(InputError, match=r"holds objects other than tensors and plain values \(\w+.system\)"):
        audiolab.load(str(copy))
    for weights in (copy, copy / "checkpoints/best.ckpt"):
        with pytest.raises(InputError, match=r"holds objects other than tensors and plain values \(\w+.system\)"):
            run.main(again(finished, tmp_path, "name=x", f"init.weights={weights}"))
    (copy / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"step\d+.ckpt is refused: it holds objects"):
        launch.resume(RunFolder.open(copy))
    (copy / "checkpoints/best.ckpt").rename(copy / "checkpoints/evil.safetensors")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        run.main(again(finished, tmp_path, "name=x", f"init.weights={copy / 'checkpoints/evil.safetensors'}"))
    for key in (None, "pos_S"):
        evil_checkpoint(tmp_path / "AASIST.pth", trace, key)
        with pytest.raises(InputError, match="cannot be read as weights"):
            AASIST(SincStream(), pretrained=str(tmp_path / "AASIST.pth"))
    assert not trace.exists()


@pytest.mark.parametrize("whole", [True, False])
def test_a_malicious_encoder_folder_is_refused(tmp_path: Path, whole: bool):
    stream = SSLStream(None, TINY_WAVLM)
    stream.encoder.config.save_pretrained(tmp_path)
    state = {**stream.encoder.state_dict(), "evil": Evil(tmp_path / "hacked")}
    torch.save(Evil(tmp_path / "hacked") if whole else state, tmp_path / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(InputError, match="has no encoder weights that can be read"):
        SSLStream(str(tmp_path))
    assert not (tmp_path / "hacked").exists()
    torch.save(stream.encoder.state_dict(), tmp_path / "pytorch_model.bin")
    assert torch.equal(SSLStream(str(tmp_path)).encoder.masked_spec_embed, stream.encoder.masked_spec_embed)


@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen"])
def test_the_config_of_a_strange_run_folder_calls_nothing(finished: Path, tmp_path: Path, target: str):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    model = json.loads((copy / "model.json").read_text())
    argument = {"os.system": "command", "subprocess.Popen": "args"}[target]
    model["back_end"] = {"_target_": target, argument: f"touch {tmp_path / 'hacked'}"}
    (copy / "model.json").write_text(json.dumps(model))
    with pytest.raises(InputError, match=f"model.back_end._target_={target} is no Module"):
        audiolab.load(str(copy))
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("name", ["best.ckpt", "model.safetensors"])
def test_weights_of_another_model_are_refused(finished: Path, tmp_path: Path, name: str):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    weights = {f"x{key}": value for key, value in read_weights(copy / "checkpoints/last.ckpt").items()}
    (copy / "checkpoints/best.ckpt").unlink()
    if name == "best.ckpt":
        torch.save({"state_dict": weights}, copy / "checkpoints" / name)
    else:
        save_file(weights, copy / "checkpoints" / name)
    with pytest.raises(InputError, match=r"holds weights of another model: \d+ missing \(first: .*\), \d+ unknown"):
        audiolab.load(str(copy))
