"""The model against the independent AMPLIFY of amplify_ds.benchmarks.padded_model, which uses padding and masks."""

import pytest
import torch
from torch.nn import functional as F

from amplify_ds.benchmarks.padded_model import ReferenceAMPLIFY
from amplify_ds.data.loader import SEGMENT_MULTIPLE
from amplify_ds.model.modeling_amplify import AMPLIFY, AMPLIFYConfig

SHAPE = dict(hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=512)
PUBLISHED = {
    118_276_507: dict(hidden_size=640, num_hidden_layers=24, num_attention_heads=10, intermediate_size=2560),
    354_008_667: dict(hidden_size=960, num_hidden_layers=32, num_attention_heads=15, intermediate_size=3840),
}
LENGTHS = (1, 37, 64, 130, 5)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU test: no CUDA device here, not run")


@pytest.fixture
def pair():
    """The reference and our model with the same weights, larger than usual so that attention is not flat."""
    torch.manual_seed(0)
    reference = ReferenceAMPLIFY(**SHAPE)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0).add_(0.05 * torch.randn_like(parameter))
    model = AMPLIFY(AMPLIFYConfig(**SHAPE))
    model.load_state_dict(reference.state_dict(), strict=True)
    return reference, model


@pytest.fixture
def proteins():
    torch.manual_seed(1)
    return [torch.randint(5, 26, (n,)) for n in LENGTHS]


def padded(proteins):
    ids = torch.nn.utils.rnn.pad_sequence(proteins, batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor(LENGTHS)[:, None]
    return ids, mask


def packed(proteins):
    ends = torch.tensor(LENGTHS).cumsum(0).tolist()
    return dict(
        input_ids=torch.cat(proteins),
        position_ids=torch.cat([torch.arange(n) for n in LENGTHS]),
        cu_seqlens=torch.tensor([0, *ends] + [ends[-1]] * (SEGMENT_MULTIPLE - len(ends)), dtype=torch.int32),
        max_seqlen=max(LENGTHS),
    )


@pytest.mark.parametrize("count", PUBLISHED)
def test_parameter_counts_and_names_are_the_published_ones(count):
    with torch.device("meta"):
        weights = AMPLIFY(AMPLIFYConfig(**PUBLISHED[count])).state_dict()
        reference = ReferenceAMPLIFY(**PUBLISHED[count]).state_dict()
    assert sum(x.numel() for x in weights.values()) == count
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in reference.items()}


def test_packed_logits_and_gradients_are_those_of_the_padded_reference(pair, proteins):
    reference, model = pair
    ids, mask = padded(proteins)
    labels = torch.randint(0, 27, mask.shape)
    expected = reference(ids, mask)[mask]
    logits = model(**packed(proteins)).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)

    F.cross_entropy(expected, labels[mask]).backward()
    F.cross_entropy(logits, labels[mask]).backward()
    for (name, actual), expected in zip(model.named_parameters(), reference.parameters()):
        torch.testing.assert_close(
            actual.grad, expected.grad, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("kind", ["boolean", "integer", "float", "additive", "additive finite", "dense boolean"])
def test_padded_logits_agree_with_the_reference_for_every_kind_of_mask(pair, proteins, kind):
    reference, model = pair
    ids, mask = padded(proteins)
    masks = {
        "boolean": mask,
        "integer": mask.long(),
        "float": mask.float(),
        "additive": torch.zeros(mask.shape).masked_fill(~mask, float("-inf")),
        "additive finite": torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[:, None, None],
        "dense boolean": mask[:, None, None].expand(-1, 1, ids.shape[1], -1),
    }
    torch.testing.assert_close(model(ids, masks[kind]).logits[mask], reference(ids, mask)[mask], atol=1e-5, rtol=1e-5)


def test_additive_mask_of_zeros_hides_nothing(pair, proteins):
    _, model = pair
    ids = proteins[3][None]
    torch.testing.assert_close(model(ids, torch.zeros(ids.shape)).logits, model(ids).logits)


def test_logits_at_masked_positions_and_loss(pair, proteins):
    _, model = pair
    positions, labels = torch.tensor([0, 40, 41, 200]), torch.tensor([7, -100, 9, 12])
    everything = model(**packed(proteins)).logits
    out = model(**packed(proteins), masked_positions=positions, labels=labels)
    torch.testing.assert_close(out.logits, everything[positions])
    torch.testing.assert_close(out.loss, F.cross_entropy(everything[positions], labels, ignore_index=-100))


def test_hidden_states_begin_with_the_embedding_and_end_before_the_norm(pair, proteins):
    reference, model = pair
    ids = proteins[3][None]
    out = model(ids, output_hidden_states=True)
    assert len(out.hidden_states) == SHAPE["num_hidden_layers"] + 1
    torch.testing.assert_close(out.hidden_states[0], reference.encoder(ids))
    torch.testing.assert_close(reference.layer_norm_2(out.hidden_states[-1]), out.last_hidden_state)
    torch.testing.assert_close(reference.decoder(out.last_hidden_state), out.logits)


def test_activation_checkpointing_changes_no_gradient(pair, proteins):
    _, model = pair
    gradients = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        model.train()(**packed(proteins)).logits.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_initial_weights_are_uniform_in_the_published_range():
    torch.manual_seed(0)
    model = AMPLIFY(AMPLIFYConfig(**SHAPE))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            assert 0.0195 < parameter.abs().max() <= 0.02, name
            assert parameter.std().item() == pytest.approx(0.02 / 3**0.5, rel=0.05), name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, 0.0 if name == "decoder.bias" else 1.0)), name
    assert model.encoder.weight[0].abs().max() > 0.01  # the padding row is initialised too


@pytest.mark.parametrize(
    "field, value", [("hidden_act", "gelu"), ("att_bias", True), ("rms_norm", False), ("bias", True)]
)
def test_an_unsupported_variant_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        AMPLIFYConfig(**SHAPE, **{field: value})


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_packed_attention_on_a_gpu(pair, proteins, dtype):
    reference, model = pair
    ids, mask = padded(proteins)
    expected = reference(ids, mask)[mask]
    inputs = {k: v.cuda() if torch.is_tensor(v) and k != "cu_seqlens" else v for k, v in packed(proteins).items()}
    logits = model.to("cuda", dtype)(**inputs).logits.float().cpu()
    limit = 1e-3 if dtype == torch.float32 else 0.05
    assert (logits - expected).norm() / expected.norm() < limit
