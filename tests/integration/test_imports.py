"""Commands do not import torch's compiler, transformers or scipy, which cost seconds of processor time per process.

Each command runs in a process that reports at its end which of them it has loaded.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amplify_ds.model.configuration_amplify import AMPLIFYConfig
from amplify_ds.model.encoder import Encoder
from amplify_ds.model.modeling_amplify import AMPLIFY
from amplify_ds.model.shape import Shape
from amplify_ds.training.adamw import AdamW
from amplify_ds.training.hub_fields import hub_fields
from tests.support.commands import AS_MAIN, environment
from tests.support.paths import EXAMPLE, ROOT
from tests.support.training import training_words

EXPENSIVE = ("torch._dynamo", "transformers", "scipy")
SMALL = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=128)
RUN = """
import atexit, os, sys
atexit.register(lambda: os.write(int(os.environ["LOADED"]), " ".join(m for m in {names} if m in sys.modules).encode()))
"""


def loaded(*arguments, modules=EXPENSIVE) -> set[str]:
    """Run a command, a module or a file of the repository; return which of `modules` it has imported."""
    reader, writer = os.pipe()
    try:
        command = [sys.executable, "-c", RUN.format(names=modules) + AS_MAIN, *map(str, arguments)]
        result = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(1) | {"LOADED": str(writer)},
            pass_fds=[writer],
            capture_output=True,
            text=True,
            timeout=600,
        )
    finally:
        os.close(writer)
    with os.fdopen(reader) as report:
        imported = set(report.read().split())
    assert result.returncode == 0, result.stderr
    return imported


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """A run of one step, and what its process imported."""
    output = tmp_path_factory.mktemp("imports") / "run"
    arguments = training_words(output, shards, training__steps=1, optimizer__warmup_steps=0, optimizer__decay_steps=1)
    return output, loaded("amplify_ds.train", *arguments)


def test_the_probe_sees_what_is_imported():
    assert loaded("timeit", "-n1", "-r1", "import transformers, torch._dynamo, scipy") == set(EXPENSIVE)


def test_training(trained):
    output, found = trained
    assert (output / "result.json").exists()
    assert found == set()


@pytest.mark.parametrize(
    "changes", [{"stage": 0}, {"stage": 2}, {"optimizer__kind": "normuon"}], ids=["stage 0", "stage 2", "normuon"]
)
def test_training_otherwise(changes, shards, tmp_path):
    short = dict(training__steps=1, optimizer__warmup_steps=0, optimizer__decay_steps=1, evaluation__max_rows=1)
    assert loaded("amplify_ds.train", *training_words(tmp_path / "run", shards, **short, **changes)) == set()


def test_attention_over_segments_is_not_compiled():
    """torch.compile excludes attention over segments, and the results agree."""
    code = (
        "import sys, torch; from amplify_ds.model.encoder import Encoder; from amplify_ds.model.shape import Shape\n"
        f"model = Encoder(Shape(**{SMALL})).eval(); ids = torch.arange(5, 25)\n"
        "cuts = [torch.tensor(c) for c in ([0, 7, 20], [0, 3, 11, 20])]\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "plain = [model(ids, cu_seqlens=c).logits for c in cuts]\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "graphs = []\n"
        "compiled = torch.compile(model, backend=lambda graph, inputs: graphs.append(graph) or graph)\n"
        "for one, c in zip(plain, cuts): torch.testing.assert_close(compiled(ids, cu_seqlens=c).logits, one)\n"
        "assert graphs and not any('autograd_function_apply' in str(graph.graph) for graph in graphs)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(1), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_readers_of_a_run(trained, shards, tmp_path):
    run = trained[0]
    fasta = tmp_path / "few.fasta"
    fasta.write_text(">a\nMKTAYIAKQRQISFVKSHFSRQ\n>b\nMALWMRLLPLLALLALWGPD\n")
    for command in (
        ("amplify_ds.evaluate", "--model", run, "--data", shards["validation"]),
        ("amplify_ds.replay", run, "--step", 1),
        ("amplify_ds.checkpoints", run),
        ("amplify_ds.plot", run),
        ("amplify_ds.embed", "--model", run, "--input", fasta, "--output", tmp_path / "embeddings.npz"),
        ("amplify_ds.score", "--model", run, "--input", fasta, "--output", tmp_path / "scores.csv"),
    ):
        assert loaded(*command) == set(), command


def test_data_preparation_needs_no_torch(tmp_path):
    arguments = ("--input", EXAMPLE / "validation.fasta.gz", "--output", tmp_path / "shards")
    assert loaded("data_prep/build_shards.py", *arguments, modules=(*EXPENSIVE, "torch")) == set()


COMMANDS = sorted(
    f"amplify_ds.{path.stem}" if path.parent.name == "amplify_ds" else f"data_prep/{path.name}"
    for folder in ("amplify_ds", "data_prep")
    for path in (ROOT / folder).glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    assert loaded(command, "--help") == set()


def test_the_model_that_trains_is_the_one_that_is_exported():
    """The same names, the same initial values for a seed, and the same state of the generator afterwards."""
    models, after = [], []
    for build in (lambda: Encoder(Shape(**SMALL)), lambda: AMPLIFY(AMPLIFYConfig(**SMALL))):
        torch.manual_seed(5)
        models.append(build().state_dict())
        after.append(torch.rand(3).tolist())
    assert list(models[0]) == list(models[1]) and after[0] == after[1]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_shapes_and_configurations_raise_the_same_errors():
    for wrong in ({"hidden_size": 65}, {"rms_norm": False}):
        for build in (Shape, AMPLIFYConfig):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                build(**wrong)
    with pytest.raises(TypeError, match="hidden_sizes"):
        Shape(hidden_sizes=64)
    assert AMPLIFYConfig(another="field").another == "field"


def test_a_checkpoint_describes_the_model_as_transformers_would(trained):
    expected = json.loads(json.dumps(AMPLIFYConfig(**SMALL, max_length=96).to_dict()))
    actual = json.loads(json.dumps(hub_fields(Shape(**SMALL, max_length=96))))
    assert {name: expected[name] for name in actual} == actual  # other versions of transformers may have more
    (state,) = Path(trained[0]).glob("checkpoints/*/state.json")
    assert json.loads(state.read_text())["model"] == actual


def test_adamw_is_torchs():
    """Weights and moments agree exactly, also when gradients are set to None."""
    ends = []
    for kind in (AdamW, torch.optim.AdamW):
        torch.manual_seed(1)
        model = torch.nn.Linear(9, 5)
        settings = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
        optimizer = kind([{"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.0}], **settings)
        for _ in range(4):
            model(torch.randn(3, 9)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert model.weight.grad is None
        ends.append([*model.parameters(), *(x for state in optimizer.state.values() for x in state.values())])
    assert len(ends[0]) == 8 and all(map(torch.equal, *ends))
    assert all(not x.requires_grad for x in ends[0][2:])
