"""Use an exported folder with transformers, without amplify_ds: `python tests/support/stranger.py FOLDER PROTEIN`.

Prints one JSON object. Tests run it with several versions of transformers, selected by PYTHONPATH.
"""

import json
import sys
from unittest import mock

forbidden = ("amplify_ds", "xformers", "flash_attn")
mock.patch.dict(sys.modules, dict.fromkeys(forbidden)).start()  # makes their import fail
import torch
import transformers
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

folder, protein = sys.argv[1:]
dtype = "dtype" if transformers.__version__ >= "5" else "torch_dtype"


def load(kind=AutoModelForMaskedLM, **options):
    return kind.from_pretrained(folder, trust_remote_code=True, **options).eval()


tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
batch = tokenizer([protein, protein[:9]], return_tensors="pt", padding=True)
ids, mask = batch["input_ids"], batch["attention_mask"]
model = load()
with torch.no_grad():
    out = model(**batch)
    hidden = load(AutoModel)(**batch, output_hidden_states=True)
    rough = load(**{dtype: torch.bfloat16})(**batch).logits
    additive = torch.zeros(mask.shape).masked_fill(mask == 0, float("-inf"))
    masks = {"boolean": mask.bool(), "additive": additive, "0/1 float": mask.float(), "4 axes": additive[:, None, None]}
    real = mask.bool()  # without padding
    differences = {name: (model(ids, other_mask).logits - out.logits)[real] for name, other_mask in masks.items()}
    loaded = {
        "device_map cpu": load(device_map={"": "cpu"}),
        "device_map auto": load(device_map="auto"),
        "meta first": load(low_cpu_mem_usage=True),
        "sdpa": load(attn_implementation="sdpa"),
        "compiled": torch.compile(load(), fullgraph=True, backend="aot_eager"),
    }
    differences |= {name: (other(**batch).logits - out.logits)[real] for name, other in loaded.items()}
    with torch.device("meta"):
        empty = AutoModelForMaskedLM.from_config(model.config, trust_remote_code=True)
    differences["built on meta, filled later"] = (
        empty.to_empty(device="cpu").load_state_dict(model.state_dict())
        and (empty.eval()(**batch).logits - out.logits)[real]
    )
length, same_again = model.config.context_length, True
if transformers.__version__ >= "5":  # earlier versions do not save the Python file of a custom model class
    model.save_pretrained(folder + "-again")
    reloaded = AutoModelForMaskedLM.from_pretrained(folder + "-again", trust_remote_code=True)
    length = reloaded.config.context_length
    same_again = all(torch.equal(a, b) for a, b in zip(model.parameters(), reloaded.parameters()))
print(
    json.dumps(
        dict(
            version=transformers.__version__,
            ids=ids.tolist(),
            logits=out.logits.tolist(),
            embeddings=model.get_input_embeddings().weight.shape[0],
            length=length,
            same_again=same_again,
            first_is_embedding=torch.equal(hidden.hidden_states[0], model.get_input_embeddings()(ids)),
            layers=len(hidden.hidden_states),
            shape=list(hidden.last_hidden_state.shape),
            last_is_normalised=torch.allclose(model.decoder(hidden.last_hidden_state), out.logits, atol=1e-5),
            half=str(rough.dtype),
            half_error=(rough.float() - out.logits)[real].abs().max().item(),
            differences={name: x.abs().max().item() for name, x in differences.items()},
        )
    )
)
