"""The Megatron-Core layouts, in both directions, against the logits of a Megatron-Core model on a CPU."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from amplify_ds.hub.export import export
from amplify_ds.hub.folder import load_model, read_source
from tests.support.commands import interpreter, other_packages
from tests.support.model_folders import SMALL, reference, write


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["megatron", "megatron-local"])
def test_a_megatron_core_model_gives_the_same_logits(layout, tmp_path):
    environment = other_packages("megatron")
    model = reference(SMALL)
    export(write(tmp_path / "source", model.state_dict()), tmp_path / "export", layout)
    ids = torch.randint(5, 26, (50,), generator=torch.Generator().manual_seed(1))
    save_file({"ids": ids}, tmp_path / "logits.safetensors")
    paths = [tmp_path / name for name in ("export", "own", "logits.safetensors")]
    result = interpreter("tests/support/megatron_logits.py", *paths, env=environment)
    assert result.returncode == 0, result.stderr
    logits = load_file(tmp_path / "logits.safetensors")
    with torch.no_grad():
        expected = model(ids[None])[0]
        assert expected.std() > 0.1
        torch.testing.assert_close(logits["theirs"][:, :27], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(logits["theirs"][:, 27:], torch.zeros(50, 5))

        imported = read_source(tmp_path / "own")  # initialised by Megatron-Core: no config, padding not zero
        assert imported.layout == "megatron-local" and "no config.json" in imported.notes[0]
        assert [note.split(":")[0] for note in imported.notes[1:]] == [
            "embedding.word_embeddings.weight",
            "output_layer.weight",
            "output_layer.bias",
        ]
        actual = load_model(tmp_path / "own")(ids[None]).logits[0]
        assert logits["own"].std() > 0.1
        torch.testing.assert_close(actual, logits["own"][:, :27], atol=1e-5, rtol=1e-5)
