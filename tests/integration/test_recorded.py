"""Shards, batches, losses, exports and exit codes, compared with tests/recorded, whose README has the rules.

A recorded line changes only in a commit that says why. All values come from commands, so that code can be moved.
"""

import json

import dnaio
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.outcomes import commands, replayed
from tests.support.paths import EXAMPLE
from tests.support.recorded import check, digest, keys
from tests.support.training import losses, train, training_words

STEPS = 20
# All settings that other tests change; the recipe `tiny` has the rest.
SETTINGS = {
    "model__hidden_size": 32,
    "model__num_hidden_layers": 2,
    "model__num_attention_heads": 2,
    "model__intermediate_size": 48,
    "training__steps": STEPS,
    "training__global_batch_tokens": 1024,
    "training__seed": 0,
    "optimizer__lr": 5e-3,
    "optimizer__warmup_steps": 3,
    "optimizer__decay_steps": 18,
    "log__every": 1,
    "evaluation__every": 10,
    "evaluation__max_rows": 4,
    "checkpoint__every": 10,
    "checkpoint__keep_last": 9,
}
OPTIMIZERS = {"adamw": {}, "normuon": {"optimizer__kind": "normuon", "optimizer__matrix_lr": 0.01}}
EXPORTED = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
LAYOUTS = ("hf", "te", "megatron", "megatron-local")


def build(*arguments) -> dict:
    rows = ("--max-length", 64, "--row-tokens", 256)
    return {"words": ["data_prep/build_shards.py", *rows, *arguments]}


def proteins(source: str, first: int, last: int):
    with dnaio.open(EXAMPLE / f"{source}.fasta.gz") as reader:
        return [record for number, record in enumerate(reader) if first <= number < last]


def write_fasta(file, records):
    file.write_text("".join(f">{record.name}\n{record.sequence}\n" for record in records))
    return file


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Return {name: folder} of bundled proteins without excluded ones, both kinds of windows, by 1 and 2 workers."""
    folder = tmp_path_factory.mktemp("shards")
    train = write_fasta(folder / "proteins.fasta", [*proteins("train", 0, 240), *proteins("validation", 0, 10)])
    excluded = write_fasta(folder / "excluded.fasta", proteins("validation", 5, 25))
    jobs = {"validation": build("--input", excluded, "--output", folder / "validation")}
    for windows in ("tile", "random"):
        for workers in (1, 2):
            name = f"{windows}, {workers} workers"
            jobs[name] = build(
                "--input",
                train,
                "--exclude",
                excluded,
                "--windows",
                windows,
                "--workers",
                workers,
                "--output",
                folder / name,
            )
    for name, result in commands(jobs).items():
        assert result["code"] == 0, (name, result["err"])
    return {name: folder / name for name in jobs}


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def manifest_of(folder) -> dict:
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("windows", ["tile", "random"])
def test_shards(shards, windows):
    folder = shards[f"{windows}, 1 workers"]
    assert files(folder) == files(shards[f"{windows}, 2 workers"])
    manifest = manifest_of(folder)
    assert manifest["counts"]["rejected"]["excluded"] == 5
    del manifest["amplify_ds_version"]
    digests = {name: digest(content) for name, content in files(folder).items() if name != "manifest.json"}
    digests |= {"manifest.json": digest(manifest), "rows": manifest["counts"]["rows"]}
    check("shards", windows, digests | {"windows": manifest["counts"]["windows"]})


def training(shards, **settings) -> dict:
    """Return arguments for `train` and `training_words`, with two sources, one read three times as often."""
    sources = {"train": f"tile={shards['tile, 1 workers']}:3", "validation": shards["validation"]}
    return {"shards": sources, "data__train": f"random={shards['random, 1 workers']}", **SETTINGS, **settings}


def seeded_model(folder, **shape):
    """Write weights under the published names from numpy's PCG64, whose numbers are the same on every processor."""
    size, inner = shape["hidden_size"], shape["intermediate_size"] * 2 // 3  # SwiGLU has three matrices for two
    shapes = {
        "encoder.weight": (27, size),
        "layer_norm_2.weight": (size,),
        "decoder.weight": (27, size),
        "decoder.bias": (27,),
    }
    for layer in range(shape["num_hidden_layers"]):
        block = f"transformer_encoder.{layer}."
        shapes |= {f"{block}{name}.weight": (size, size) for name in ("q", "k", "v", "wo")}
        shapes |= {f"{block}{name}.weight": (size,) for name in ("attention_norm", "ffn_norm")}
        shapes |= {f"{block}ffn.w12.weight": (2 * inner, size), f"{block}ffn.w3.weight": (size, inner)}
    numbers = np.random.Generator(np.random.PCG64(0))
    folder.mkdir()
    tensors = {name: numbers.random(shapes[name], dtype=np.float32) - np.float32(0.5) for name in sorted(shapes)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "AMPLIFY", "max_length": 64, **shape}))


def tune(shards, output, stage=1, **settings) -> dict:
    """Return a training command for `commands`, without a launcher."""
    return {"words": ["-m", "amplify_ds.train", *training_words(output, stage=stage, **training(shards, **settings))]}


@pytest.fixture(scope="module")
def runs_of_two(shards, tmp_path_factory):
    """Return {optimizer: run directory of two ranks}."""
    folder = tmp_path_factory.mktemp("runs")
    for optimizer, stage in (("adamw", 2), ("normuon", 1)):
        result = train(2, folder / optimizer, stage=stage, **training(shards, **OPTIMIZERS[optimizer]))
        assert result.returncode == 0, result.stderr
    return {optimizer: folder / optimizer for optimizer in OPTIMIZERS}


@pytest.fixture(scope="module")
def outcomes(shards, tmp_path_factory):
    """Return (folder, {name: outcome}) of commands of every kind; `folder` is the folder with their outputs."""
    folder = tmp_path_factory.mktemp("outcomes")
    seeded_model(folder / "model", **EXPORTED)
    write_fasta(folder / "few.fasta", proteins("validation", 0, 3))
    run, tile, model, few = folder / "adamw", shards["tile, 1 workers"], folder / "model", folder / "few.fasta"
    module = lambda name, *arguments, **more: {"words": ["-m", f"amplify_ds.{name}", *arguments], **more}  # noqa: E731
    script = lambda name, *arguments, **more: {"words": [f"data_prep/{name}.py", *arguments], **more}  # noqa: E731
    damaged = folder / "damaged"
    (damaged / "checkpoints/step-00000003").mkdir(parents=True)
    (damaged / "run.json").write_text("{}")
    jobs = {
        "train": tune(shards, run),
        "train, normuon": tune(shards, folder / "normuon", stage=0, **OPTIMIZERS["normuon"]),
        **{f"export {layout}": module("export", model, folder / layout, "--layout", layout) for layout in LAYOUTS},
        "export of a run": module("export", run, folder / "of-run"),
        "export over a folder": module("export", model, folder / "hf"),
        "export of nothing": module("export", folder / "absent", folder / "out"),
        "export, interrupted": module("export", model, folder / "out", signal=["SIGINT", "model.safetensors"]),
        "replay": module("replay", run, "--step", 7, "--json", folder / "batch.json"),
        "replay of a step before the first": module("replay", run, "--step", 0),
        "checkpoints": module("checkpoints", run, "--verify"),
        "checkpoints, one damaged": module("checkpoints", damaged),
        "evaluate": module("evaluate", "--model", run, "--data", shards["validation"], "--json", "--max-rows", 4),
        "evaluate without data": module("evaluate", "--model", run, "--data", folder / "absent"),
        "embed": module("embed", "--model", model, "--input", few, "--output", folder / "few.npz"),
        "embed over a file": module("embed", "--model", model, "--input", few, "--output", folder / "few.npz"),
        "embed, interrupted": module(
            "embed", "--model", model, "--input", few, "--output", folder / "out.npz", signal=["SIGINT", "few.fasta"]
        ),
        "score": module("score", "--model", model, "--input", few, "--output", folder / "few.csv"),
        "score without input": module(
            "score", "--model", model, "--input", folder / "absent", "--output", folder / "out.csv"
        ),
        "inspect_shards": script("inspect_shards", tile, "--verify", "--show", 0),
        "inspect_shards without a row": script("inspect_shards", tile, "--show", 99999),
        "build_shards over others": build("--input", few, "--output", tile),
        "build_shards of nothing": build("--input", folder / "absent", "--output", folder / "out"),
        "build_shards, interrupted": build("--input", few, "--output", folder / "out")
        | {"signal": ["SIGINT", "few.fasta"]},
        "build_shards with short rows": script(
            "build_shards", "--input", few, "--output", folder / "out", "--row-tokens", 8
        ),
        "train, complete before": tune(shards, run),
        "train, other settings": tune(shards, run, optimizer__lr=1e-3),
        "train, fewer steps than done": tune(shards, run, training__steps=5),
        "train, dry run": tune(shards, folder / "dry"),
        "train, unknown setting": tune(shards, folder / "out", optimizer__leraning_rate=1),
        "train, bad setting": tune(shards, folder / "out", model__num_attention_heads=5),
        "train, diverged": tune(
            shards, folder / "diverged", optimizer__lr=1e30, optimizer__gradient_clipping=0, optimizer__warmup_steps=0
        ),
        "train, SIGTERM": tune(shards, folder / "sigterm") | {"signal": ["SIGTERM", "events"]},
        "train, SIGUSR1": tune(shards, folder / "sigusr1") | {"signal": ["SIGUSR1", "events"]},
        "train, continued after SIGTERM": tune(shards, folder / "sigterm", training__steps=3),
        "launch": module("launch", "--help"),
        "launch without output": module("launch", "--recipe", "tiny"),
        "preflight without a hostfile": module("preflight", folder / "absent"),
        **{
            f"{name}, unknown flag": module(name, "--surprise", 1)
            for name in ("train", "launch", "evaluate", "export", "embed", "score", "replay", "plot", "checkpoints")
        },
        **{
            f"{name}, unknown flag": script(name, "--surprise", 1)
            for name in ("build_shards", "inspect_shards", "fetch_ur100p", "decontaminate")
        },
    }
    jobs["train, dry run"]["words"].append("--dry-run")
    return folder, commands(jobs)


def test_exit_codes(outcomes):
    _, results = outcomes
    check("exit_codes", "command", {name: outcome["code"] for name, outcome in results.items()})
    tracebacks = [name for name, outcome in results.items() if "Traceback" in outcome["err"]]
    assert not tracebacks, results[tracebacks[0]]["err"]


def test_replayed_batch(outcomes):
    folder, results = outcomes
    assert results["replay"]["code"] == 0, results["replay"]["err"]
    batch = json.loads((folder / "batch.json").read_text())
    check("replay", "step 7", replayed(batch) | {"printed": digest(results["replay"]["out"].partition("\nwrote ")[0])})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_losses(request, ranks, optimizer):
    run = request.getfixturevalue("outcomes")[0] / optimizer
    if ranks == 2:
        run = request.getfixturevalue("runs_of_two")[optimizer]
    values = {f"step {step:02d}": loss for step, loss in losses(run).items()}
    assert len(values) == STEPS
    for score in json.loads((run / "result.json").read_text())["evaluations"]:
        values[f"step {score['step']:02d} {score['set']} {score['protocol']}"] = score["loss"]
    check("losses", f"{optimizer}, {ranks} ranks", values, relative=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exports(outcomes, layout):
    folder, results = outcomes
    assert results[f"export {layout}"]["code"] == 0, results[f"export {layout}"]["err"]
    tensors = load_file(folder / layout / "model.safetensors")
    check(
        "exports",
        layout,
        {
            **{
                f"tensor {name}": f"{tensor.dtype} {list(tensor.shape)} {digest(tensor.tobytes())}"
                for name, tensor in tensors.items()
            },
            **{f"file {path.name}": True for path in (folder / layout).iterdir()},
            **{
                f"config.json {key}": kind
                for key, kind in keys(json.loads((folder / layout / "config.json").read_text())).items()
            },
        },
    )


def test_keys_of_files(shards, outcomes):
    folder, results = outcomes
    run = folder / "adamw"
    contents = {
        "manifest.json": manifest_of(shards["tile, 1 workers"]),
        "stopped.json": json.loads((folder / "sigusr1/stopped.json").read_text()),
        "state.json": json.loads((run / f"checkpoints/step-{STEPS:08d}/state.json").read_text()),
        "provenance.json": json.loads((folder / "of-run/provenance.json").read_text()),
        "replay --json": json.loads((folder / "batch.json").read_text()),
        "evaluate --json": json.loads(results["evaluate"]["out"]),
        **{name: json.loads((run / name).read_text()) for name in ("run.json", "result.json")},
    }
    for name, content in contents.items():
        check("keys", name, keys(content))


def test_tags_of_tensorboard_and_files_of_a_run(outcomes, runs_of_two):
    from amplify_ds.plot import read_scalars

    check("run", "tag", dict.fromkeys(read_scalars(outcomes[0] / "adamw"), True))
    shown = [path.relative_to(runs_of_two["adamw"]) for path in runs_of_two["adamw"].rglob("*") if path.is_file()]
    check("run", "file", {str(path): True for path in shown if path.parts[0] != "events"})
    for name in ("model", "optimizer"):
        tensors = load_file(runs_of_two["normuon"] / f"checkpoints/step-{STEPS:08d}/{name}.safetensors")
        check("run", f"{name}.safetensors", {key: f"{x.dtype} {list(x.shape)}" for key, x in tensors.items()})
