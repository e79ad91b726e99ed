"""ESM-2 and AMPLIFY on the same masked residues, compared with ESM's tokenizer and one protein at a time."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer

from amplify_ds.data import masking
from amplify_ds.data.shards import Shards
from amplify_ds.errors import AmplifyError
from amplify_ds.hub.others import scorable
from tests.support.commands import python
from tests.support.model_folders import SMALL, reference, write

# The vocabulary of ESM-2, in its order.
ESM_TOKENS = "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>".split()
OURS = "<pad> <unk> <mask> <bos> <eos> | L A G V S E R T I D P K Q N F Y M H W C B".split()


@pytest.fixture(scope="module")
def esm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("esm")
    (folder / "words.txt").write_text("\n".join(ESM_TOKENS))
    tokenizer = EsmTokenizer(str(folder / "words.txt"))
    torch.manual_seed(0)
    model = EsmForMaskedLM(
        EsmConfig(
            vocab_size=33,
            mask_token_id=32,
            pad_token_id=1,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            position_embedding_type="rotary",
            token_dropout=True,
            emb_layer_norm_before=False,
            max_position_embeddings=1026,
            initializer_range=0.3,
        )
    ).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def expected(esm, shards, protocol, rows):
    """Return the losses of all targets from inputs written as text, one protein at a time, for ESM's own tokenizer."""
    _, model, tokenizer = esm
    losses = []
    allowed = [ESM_TOKENS.index(token) for token in OURS if token in ESM_TOKENS and len(token) == 1]
    for number in range(rows):
        tokens, lengths = shards.row(number)
        for window in np.split(tokens, np.cumsum(lengths))[:-1]:
            ids, positions, labels = masking.mask_windows(window, [len(window)], 0.15, protocol)
            text = [OURS[i] for i in ids]
            first, last = int(text[0] == "<bos>"), len(text) - int(text[-1] == "<eos>")
            inside = [
                "<unk>" if token not in ESM_TOKENS or token in ("<cls>", "<eos>") else token
                for token in text[first:last]
            ]
            inputs = tokenizer("".join(inside), return_tensors="pt")
            assert inputs["input_ids"].shape[1] == len(inside) + 2
            with torch.no_grad():
                logits = model(**inputs).logits[0].double()
            for position, label in zip(positions, labels):
                scores = logits[position - first + 1, allowed].log_softmax(-1)
                losses.append(-scores[allowed.index(ESM_TOKENS.index(OURS[label]))].item())
    return losses


def test_a_diverged_model_and_absurd_sizes_are_one_message(esm, tmp_path):
    folder = shutil.copytree(esm[0], tmp_path / "esm")
    weights = load_file(folder / "model.safetensors")
    name = "esm.encoder.layer.1.output.dense.weight"
    weights[name][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AmplifyError, match=f"1 of the .* values of {name} are not finite"):
        scorable(str(folder)).load(torch.device("cpu"))
    sizes = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(sizes | {"num_hidden_layers": 10**9}))
    with pytest.raises(AmplifyError, match=f"num_hidden_layers is 1000000000, but there are {len(weights)} tensors"):
        scorable(str(folder))


def test_the_same_residues_are_scored_for_every_model(esm, shards, tmp_path):
    amplify = write(tmp_path / "amplify", reference(SMALL).state_dict())
    data = shards["validation"]
    command = ["-m", "amplify_ds.evaluate", "--data", data, "--max-rows", 2, "--model", amplify, "--model", esm[0]]
    result = python(*command, "--json")
    assert result.returncode == 0, result.stderr
    scores = {(score["model"], score["protocol"]): score for score in json.loads(result.stdout)}
    for protocol in ("published", "mask_only"):
        losses = expected(esm, Shards(data), protocol, 2)
        of_esm, of_amplify = scores[str(esm[0]), protocol], scores[str(amplify), protocol]
        assert of_esm["targets"] == of_amplify["targets"] == len(losses)
        assert of_esm["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
        assert of_esm["baseline_loss"] == of_amplify["baseline_loss"]
    table = python(*command)
    assert table.returncode == 0, table.stderr
    for model in (amplify, esm[0]):
        line = next(line for line in table.stdout.splitlines() if line.startswith(f"| {model} | mask_only"))
        assert f"| {scores[str(model), 'mask_only']['perplexity']:.3f} |" in line


def test_tokens_that_esm_2_knows(esm):
    known = scorable(str(esm[0])).known
    assert [token for token, is_known in zip(OURS, known) if not is_known] == OURS[:6]


def test_a_model_that_reads_no_proteins_is_refused(esm, tmp_path):
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    model = BertForMaskedLM(BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=1))
    model.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "A"]))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    with pytest.raises(AmplifyError, match="does not split proteins into letters"):
        scorable(str(tmp_path))
