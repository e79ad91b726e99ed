"""Inputs of forward: every way to separate proteins, against proteins computed one by one in plain PyTorch.

The last test runs this file with the oldest supported transformers.
"""

import inspect
import os
import subprocess
import sys

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers import DataCollatorWithFlattening

from amplify_ds.benchmarks.padded_model import ReferenceAMPLIFY, rotate
from amplify_ds.model.attention import Segments
from amplify_ds.model.modeling_amplify import AMPLIFY, AMPLIFYConfig
from tests.support.commands import other_packages
from tests.support.paths import ROOT

SHAPE = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
LENGTHS = (9, 1, 30, 17)
TOKENS = sum(LENGTHS)
ENDS = [0, 9, 10, 40, 57]
ROW = torch.zeros(1, TOKENS, dtype=torch.long)
POSITIONS = torch.cat([torch.arange(n) for n in LENGTHS])


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    model = ReferenceAMPLIFY(**SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than usual, so that attention is not flat
            parameter.mul_(6.0 if parameter.dim() > 1 else 1.0).add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture
def model(reference):
    return build(reference)


@pytest.fixture(scope="module")
def proteins():
    torch.manual_seed(1)
    return [torch.randint(5, 26, (n,)) for n in LENGTHS]


@pytest.fixture(scope="module")
def alone(reference, proteins):
    """The reference logits [T, V] of each protein alone."""
    with torch.no_grad():
        return torch.cat([reference(ids[None])[0] for ids in proteins])


def build(reference, **options):
    config = AMPLIFYConfig(**SHAPE)
    for name, value in options.items():
        setattr(config, name, value)
    model = AMPLIFY(config)
    model.load_state_dict(reference.state_dict(), strict=True)
    return model.eval()


def padded(proteins, left=False):
    longest = max(map(len, proteins))
    rows = [F.pad(x, (longest - len(x), 0) if left else (0, longest - len(x))) for x in proteins]
    seen = [F.pad(torch.ones_like(x), (longest - len(x), 0) if left else (0, longest - len(x))) for x in proteins]
    return torch.stack(rows), torch.stack(seen)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


def probabilities(reference, ids, mask):
    """[B, N, L, L] of each layer, from the reference's projections."""
    x, attentions = reference.encoder(ids), []
    hidden = torch.zeros(mask.shape).masked_fill(mask == 0, -torch.inf)[:, None, None]
    for block in reference.transformer_encoder:
        normed = block.attention_norm(x)
        q, k = (rotate(f(normed).unflatten(-1, (2, 64)).transpose(1, 2)) for f in (block.q, block.k))
        attentions.append((q @ k.mT / 8 + hidden).softmax(-1))
        x = block(x, hidden)
    return attentions


def packed_ways(proteins):
    row, cu_seqlens = torch.cat(proteins), torch.tensor(ENDS, dtype=torch.int32)
    hugging_face = dict(cu_seq_lens_q=cu_seqlens, cu_seq_lens_k=cu_seqlens.clone(), max_length_q=30, max_length_k=30)
    positions = dict(position_ids=POSITIONS[None])
    return {
        "[T]": dict(input_ids=row, cu_seqlens=cu_seqlens, max_seqlen=30),
        "[1, T]": dict(input_ids=row[None], cu_seqlens=cu_seqlens, max_seqlen=64, position_ids=POSITIONS),
        "no longest": dict(input_ids=row[None], cu_seqlens=cu_seqlens.long()),
        "names of Hugging Face": dict(input_ids=row[None], **hugging_face, **positions),
        "names of Hugging Face, no positions": dict(input_ids=row[None], **hugging_face),
        "positions alone": dict(input_ids=row[None], **positions),
        "positions alone, from 2": dict(input_ids=row[None], position_ids=POSITIONS[None] + 2),
        "positions alone, [T]": dict(input_ids=row, position_ids=POSITIONS),
        "positions and a mask": dict(input_ids=row[None], **positions, attention_mask=torch.ones_like(row)[None]),
    }


@pytest.mark.parametrize("way", packed_ways([torch.zeros(0)]))
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_proteins_do_not_attend_to_each_other(way, implementation, reference, proteins, alone):
    model = build(reference, _attn_implementation=implementation)
    inputs = packed_ways(proteins)[way]
    output = model(**inputs, output_hidden_states=True)
    shape = inputs["input_ids"].shape
    assert output.logits.shape == (*shape, 27) and output.last_hidden_state.shape == (*shape, 128)
    close(output.logits.view(TOKENS, 27), alone)
    assert {x.shape for x in output.hidden_states} == {(*shape, 128)}


@pytest.mark.parametrize("way", ["[1, T]", "names of Hugging Face", "positions alone"])
def test_loss_and_gradient_of_a_packed_row(way, model, reference, proteins):
    labels = torch.randint(0, 27, (1, TOKENS)).masked_fill(torch.rand(1, TOKENS) < 0.7, -100)
    model(**packed_ways(proteins)[way], labels=labels).loss.backward()
    reference.zero_grad()
    F.cross_entropy(torch.cat([reference(ids[None])[0] for ids in proteins]), labels[0]).backward()
    for (name, actual), expected in zip(model.named_parameters(), reference.parameters()):
        torch.testing.assert_close(
            actual.grad, expected.grad, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("flash", [False, True])
def test_batches_of_the_collator_of_transformers(flash, model, proteins, alone):
    if flash and "return_flash_attn_kwargs" not in inspect.signature(DataCollatorWithFlattening.__init__).parameters:
        pytest.skip(f"transformers {transformers.__version__}: its collator returns positions only")
    collator = DataCollatorWithFlattening(**{"return_flash_attn_kwargs": True} if flash else {})
    batch = collator([{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in proteins])
    assert ("cu_seq_lens_q" in batch) == flash and batch["input_ids"].shape == (1, TOKENS)
    output = model(**batch)
    close(output.logits[0], alone)
    close(output.loss, F.cross_entropy(alone, batch["labels"][0]))


def test_several_rows_of_several_proteins_by_their_positions(model, proteins, alone):
    ids = torch.stack([torch.cat(proteins), torch.cat(proteins[::-1])])
    positions = torch.stack([POSITIONS, torch.cat([torch.arange(n) for n in LENGTHS[::-1]])])
    output = model(ids, position_ids=positions).logits
    close(output[0], alone)
    close(torch.cat(output[1].split(LENGTHS[::-1])[::-1]), alone)


def test_positions_derived_from_segments():
    """Tested directly, because rotary attention depends on distances only, so logits hardly change."""
    with_empty_segments = torch.tensor([0, *ENDS, TOKENS, TOKENS], dtype=torch.int32)
    assert torch.equal(Segments(with_empty_segments).positions("cpu"), POSITIONS)


@pytest.mark.slow
def test_positions_alone_when_compiled(model, proteins, alone):
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    close(compiled(torch.cat(proteins)[None], position_ids=POSITIONS[None]).logits[0], alone)


@pytest.mark.parametrize("filler", [0, 1])
def test_positions_of_left_padding_are_one_protein(filler, model, proteins, alone):
    ids, mask = padded(proteins, left=True)
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, filler)
    output = model(ids, mask, positions).logits
    assert output.isfinite().all()
    close(output[mask.bool()], alone)


def test_positions_that_jump_ahead_stay_in_one_protein(model, proteins):
    gap = torch.arange(30) + 200 * (torch.arange(30) > 12)
    output = model(proteins[2][None], position_ids=gap[None]).logits
    assert (output - model(proteins[2][None]).logits).abs().max() > 1e-3
    close(output, model(proteins[2][None], position_ids=gap, cu_seqlens=torch.tensor([0, 30])).logits)


@pytest.mark.parametrize("way", ["asked for", "configured", "eager"])
def test_attention_probabilities_agree_with_the_reference(way, reference, proteins, alone, monkeypatch):
    options = {"_attn_implementation": "eager"} if way != "asked for" else {}
    model = build(reference, **options, **({"output_attentions": True} if way == "configured" else {}))
    ids, mask = padded(proteins)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)  # must not be called
    output = model(ids, mask, **({"output_attentions": True} if way != "configured" else {}))
    close(output.logits[mask.bool()], alone)
    assert len(output.attentions) == 2
    for actual, expected in zip(output.attentions, probabilities(reference, ids, mask)):
        close(actual, expected)


def test_eager_returns_no_probabilities_unless_asked(reference, proteins, alone, monkeypatch):
    model = build(reference, _attn_implementation="eager")
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    ids, mask = padded(proteins)
    output = model(ids, mask)
    assert output.attentions is None
    close(output.logits[mask.bool()], alone)


def test_a_sequence_of_padding_alone_leaves_the_others_finite(model, proteins):
    ids, mask = padded(proteins)
    mask[1] = 0
    output = model(ids, mask, output_attentions=True)
    assert output.logits.isfinite().all() and (output.attentions[0][1] == 0).all()
    close(output.logits[[0, 2, 3]], model(ids, mask).logits[[0, 2, 3]])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_through_probabilities(checkpointing, model, reference, proteins):
    ids, mask = padded(proteins)
    model.gradient_checkpointing = checkpointing
    model.train()(ids, mask, output_attentions=True).attentions[1].square().sum().backward()
    reference.zero_grad()
    probabilities(reference, ids, mask)[1].square().sum().backward()
    close(model.transformer_encoder[0].q.weight.grad, reference.transformer_encoder[0].q.weight.grad)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flash_attention_3", "flex_attention", "no"])
def test_other_implementations_are_refused(implementation, reference, proteins):
    with pytest.raises((ValueError, ImportError), match="(?i)attn_implementation|attention"):
        model = AMPLIFY._from_config(AMPLIFYConfig(**SHAPE), attn_implementation=implementation)
        model(proteins[0][None])
    model = build(reference)
    model.config._attn_implementation = implementation
    with pytest.raises(ValueError, match=f"found '{implementation}'"):
        model(proteins[0][None])


def test_embeddings_in_place_of_ids(model, reference, proteins, alone):
    row = torch.cat(proteins)
    inputs = dict(cu_seqlens=torch.tensor(ENDS), max_seqlen=30)
    embedded = reference.encoder(row).detach().requires_grad_()
    close(model(inputs_embeds=embedded, **inputs).logits, alone)
    ids, mask = padded(proteins)
    close(model(inputs_embeds=reference.encoder(ids), attention_mask=mask).logits[mask.bool()], alone)
    model(inputs_embeds=embedded[None], **inputs).logits.square().sum().backward()
    model.zero_grad()
    model(row, **inputs).logits.square().sum().backward()
    grad_embedding = torch.zeros(27, 128).index_add(0, row, embedded.grad)
    close(model.encoder.weight.grad, grad_embedding)


def test_places_of_a_padded_batch(model, proteins):
    ids, mask = padded(proteins)
    everything = model(ids, mask).logits.flatten(0, 1)
    positions = torch.tensor([0, 31, 62, 118])
    close(model(ids, mask, masked_positions=positions).logits, everything[positions])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_official_pad_mask(dtype, model, proteins, alone):
    ids, mask = padded(proteins)
    pad_mask = torch.where(ids == 0, float("-inf"), 0.0).to(dtype)
    close(model(ids, pad_mask=pad_mask).logits[mask.bool()], alone)


@pytest.mark.parametrize("kind", [int, torch.tensor, lambda n: torch.tensor([[n]]), lambda n: torch.tensor(float(n))])
def test_loss_of_a_part_of_a_batch(kind, model, proteins):
    ids, mask = padded(proteins)
    labels = ids.masked_fill(mask == 0, -100)
    logits = model(ids).logits
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    output = model(ids, labels=labels, num_items_in_batch=kind(1000)).loss
    assert output.dim() == 0
    close(output, total / 1000)
    close(model(ids, labels=labels).loss, total / TOKENS)


@pytest.mark.parametrize(
    "message, inputs",
    [
        ("pass exactly one of input_ids and inputs_embeds", dict()),
        (
            "pass exactly one of input_ids and inputs_embeds",
            dict(input_ids=ROW, inputs_embeds=torch.zeros(1, TOKENS, 128)),
        ),
        ("must be .B, L., .T. or .1, T.", dict(input_ids=ROW[None])),
        ("cu_seqlens must .* found shape .2.: 1, 57", dict(input_ids=ROW, cu_seqlens=torch.tensor([1, TOKENS]))),
        ("go from 0 to the number of tokens, 57", dict(input_ids=ROW, cu_seqlens=torch.tensor([0, TOKENS - 1]))),
        ("without decreasing", dict(input_ids=ROW, cu_seqlens=torch.tensor([0, 40, 9, TOKENS]))),
        ("cu_seqlens must have one axis", dict(input_ids=ROW, cu_seqlens=torch.tensor([[0, TOKENS]]))),
        ("cu_seqlens must have one axis", dict(input_ids=ROW, cu_seqlens=torch.tensor([0]))),
        ("max_seqlen is 16, but .* 48", dict(input_ids=ROW, cu_seqlens=torch.tensor([0, 9, TOKENS]), max_seqlen=16)),
        ("max_seqlen was given without cu_seqlens", dict(input_ids=ROW, max_seqlen=57)),
        ("given together", dict(input_ids=ROW, cu_seq_lens_q=torch.tensor([0, TOKENS]))),
        ("given together", dict(input_ids=ROW, max_length_q=57)),
        (
            "must equal cu_seq_lens_k",
            dict(input_ids=ROW, cu_seq_lens_q=torch.tensor([0, TOKENS]), cu_seq_lens_k=torch.tensor([0, 9, TOKENS])),
        ),
        (
            "must equal",
            dict(
                input_ids=ROW,
                cu_seq_lens_q=torch.tensor([0, TOKENS]),
                max_length_q=57,
                max_length_k=60,
                cu_seq_lens_k=torch.tensor([0, TOKENS]),
            ),
        ),
        ("both given", dict(input_ids=ROW, cu_seqlens=torch.tensor([0, TOKENS]), max_length_q=57)),
        ("must be .T. or .1, T.", dict(input_ids=ROW.view(3, 19), cu_seqlens=torch.tensor([0, TOKENS]))),
        ("takes no attention_mask", dict(input_ids=ROW, cu_seqlens=torch.tensor([0, TOKENS]), attention_mask=ROW)),
        ("takes no attention_mask", dict(input_ids=ROW, cu_seqlens=torch.tensor([0, TOKENS]), pad_mask=ROW)),
        ("not supported for packed", dict(input_ids=ROW, position_ids=POSITIONS, output_attentions=True)),
        ("position_ids .56. does not fit", dict(input_ids=ROW, position_ids=POSITIONS[1:])),
        ("position_ids .2, 57. does not fit", dict(input_ids=ROW, position_ids=POSITIONS.expand(2, -1))),
        ("attention_mask .1, 1. does not fit", dict(input_ids=ROW, attention_mask=torch.ones(1, 1))),
        ("attention_mask .57. does not fit", dict(input_ids=ROW[0], attention_mask=ROW[0])),
        ("pad_mask must be additive", dict(input_ids=ROW, pad_mask=ROW == 0)),
        ("pad_mask must be additive", dict(input_ids=ROW, pad_mask=ROW)),
        ("pad_mask must be additive", dict(input_ids=ROW, pad_mask=1.0 - ROW)),
        ("both given", dict(input_ids=ROW, pad_mask=0.0 * ROW, attention_mask=ROW)),
        ("masked_positions must be integers", dict(input_ids=ROW, masked_positions=ROW == 0)),
        ("masked_positions must be integers", dict(input_ids=ROW, masked_positions=ROW)),
        ("labels .57, 1. do not fit", dict(input_ids=ROW, labels=ROW.T)),
        ("labels .1, 57. do not fit", dict(input_ids=ROW, labels=ROW, masked_positions=POSITIONS)),
    ],
)
def test_contradictions_are_refused(message, inputs, model):
    with pytest.raises(ValueError, match=message):
        model(**inputs)


@pytest.mark.parametrize(
    "name", ["token_type_ids", "head_mask", "use_cache", "src", "encoder_hidden_states", "seq_idx"]
)
def test_an_argument_that_is_not_supported_is_named(name, model):
    with pytest.raises(TypeError, match=name):
        model(ROW, **{name: ROW})


@pytest.mark.skipif(transformers.__version__.startswith("4."), reason="this is that run")
@pytest.mark.slow
def test_the_same_under_the_oldest_transformers():
    environment = other_packages("transformers4")
    environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(ROOT)])
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", __file__],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout and "this is that run" in result.stdout
