"""A model folder with random weights, and the outputs of the independent reference model, for embed and score."""

import json
import os

import torch
from safetensors.torch import save_file

from amplify_ds.benchmarks.padded_model import ReferenceAMPLIFY
from amplify_ds.hub.export import layout_config
from amplify_ds.hub.tokenizer import write_tokenizer
from amplify_ds.model.configuration_amplify import AMPLIFYConfig
from tests.support.commands import python

LIMIT = 40  # tokens per window
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 96}
LETTERS = "LAGVSERTIDPKQNFYMHWCB"  # tokens 6 to 26; 5 is the chain break


def make_folder(folder, seed=0, **changes):
    """Write a model folder and return its reference model.

    The weights are much larger than those of a new model, so that predictions differ between positions.
    """
    torch.manual_seed(seed)
    reference = ReferenceAMPLIFY(**SHAPE).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.dim() > 1:
                parameter.uniform_(-0.3, 0.3)
    folder.mkdir()
    save_file(reference.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config = layout_config(AMPLIFYConfig(max_length=LIMIT, **SHAPE)) | changes
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, LIMIT)
    return reference


def ids_of(sequence):
    """Return <bos>, a token for each letter, <eos>; 1 is <unk>."""
    return [3, *(5 if x == "|" else LETTERS.find(x) + 6 if x in LETTERS else 1 for x in sequence.upper()), 4]


def window_of(position, tokens):
    """Return (start, stop) of the first window in which token `position` is farthest from an edge, by trying all."""
    if tokens <= LIMIT:
        return 0, tokens
    spare = tokens - LIMIT
    count = 1
    while LIMIT + (count - 1) * (LIMIT // 2) < tokens:
        count += 1
    starts = [spare * i // (count - 1) for i in range(count)]
    inside = {s: min(position - s, s + LIMIT - 1 - position) for s in starts}
    start = max(starts, key=lambda s: (inside[s], -s))
    return start, start + LIMIT


@torch.no_grad()
def hidden(reference, ids, layer, norm):
    x = reference.encoder(torch.tensor([ids]))
    for block in reference.transformer_encoder[:layer]:
        x = block(x, torch.zeros(1, 1, 1, len(ids)))
    return (reference.layer_norm_2(x) if norm else x)[0]


def every_token(reference, sequence, layer=2, norm=True):
    """Return [tokens, H] the hidden states of <bos> sequence <eos>, one forward pass per token in its window."""
    ids = ids_of(sequence)
    states = []
    for position in range(len(ids)):
        start, stop = window_of(position, len(ids))
        states.append(hidden(reference, ids[start:stop], layer, norm)[position - start])
    return torch.stack(states)


def log_p(reference, sequence, masked):
    """Return [residues, V] the log probabilities at each residue, one forward pass per residue."""
    ids = ids_of(sequence)
    rows = []
    for position in range(1, len(ids) - 1):
        start, stop = window_of(position, len(ids))
        window = ids[start:stop]
        if masked:
            window[position - start] = 2
        with torch.no_grad():
            rows.append(reference(torch.tensor([window]))[0, position - start].log_softmax(-1))
    return torch.stack(rows)


# Runs a command of amplify_ds in small chunks, several times in turn, each in a process forked from one that has
# imported everything and computed nothing. A step is [function, count, arguments]: `kill -9` at the count-th call of
# the function.
_KILLING = """
import functools, importlib, json, os, signal, sys, traceback
from pathlib import Path
from amplify_ds import files
from amplify_ds.inference import pipelines, outputs, resumable, scores
command, steps = importlib.import_module(sys.argv[1]), json.loads(sys.argv[2])
pipelines.protein_chunks = functools.partial(pipelines.protein_chunks, limit=40)
scores.chunked = functools.partial(scores.chunked, limit=600)
FUNCTIONS = {"sync": (files, "sync"), "write": (resumable.Chunks, "write"), "read": (resumable.Chunks, "read"),
             "rmtree": (resumable.shutil, "rmtree")}

def kill_at(function, count):
    module, name = FUNCTIONS[function]
    original, calls = getattr(module, name), []
    def killing(*arguments, **options):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)
    setattr(module, name, killing)

for function, count, arguments in steps:
    output = Path(arguments[arguments.index("--output") + 1])
    if not (child := os.fork()):
        if function:
            kill_at(function, count)
        sys.argv = [sys.argv[1], *arguments]
        try:
            command.command(command.main)
        except SystemExit as end:
            os._exit(end.code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    chunks = {x.name: x.stat().st_mtime_ns for x in sorted(Path(f"{output}.partial").glob("chunk-*.npz"))}
    print("STEP", json.dumps([status, output.exists(), chunks]), flush=True)
"""


def killed_and_continued(module, arguments, whole, output):
    """Run `module` undisturbed to `whole`; kill and continue it on the way to `output`; compare the two."""
    to = ["--output", str(output)]
    moments = [("write", 1), ("sync", 2), ("write", 4), ("read", 1), ("rmtree", 1), (None, 0)]
    steps = [(None, 0, [*arguments, "--output", str(whole)])]
    steps += [(function, count, [*arguments, *to]) for function, count in moments]
    result = python("-c", _KILLING, module, json.dumps(steps), env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    results = [json.loads(line[5:]) for line in result.stdout.splitlines() if line.startswith("STEP ")]
    (done, _, _), (at_once, *first), (early, *second), (later, *third), (end, *fourth), (renamed, *fifth), last = (
        results
    )
    assert done == 0 and first == [False, {}]
    assert (at_once, early, later, end, renamed) == (-9,) * 5, result.stderr
    assert not second[0] and not third[0] and not fourth[0] and fifth[0]
    assert 0 < len(third[1]) < len(fourth[1])
    assert second[1].items() <= third[1].items() <= fourth[1].items(), "a complete chunk was computed again"
    assert output.read_bytes() == whole.read_bytes()
    assert last[0] == 1 and "already exists" in result.stderr
