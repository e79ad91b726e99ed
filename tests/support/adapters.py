"""Apply PEFT and torchao to a model and print the results for test_projections.py: `python adapters.py FOLDER`."""

import copy
import json
import sys

import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

from amplify_ds.model.modeling_amplify import AMPLIFY, AMPLIFYConfig

torch.manual_seed(0)
model = AMPLIFY(
    AMPLIFYConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.mul_(5.0 if parameter.dim() > 1 else 1.0)
ids = torch.randint(5, 26, (2, 30))
mask = torch.ones_like(ids)
plain = model(ids, mask).logits.detach()


def relative_error(logits, expected=plain):
    return ((logits - expected).norm() / expected.norm()).item()


results = {}
configs = {"weight only": Int8WeightOnlyConfig(), "dynamic": Int8DynamicActivationInt8WeightConfig()}
for name, config in configs.items():
    quantised = copy.deepcopy(model)
    quantize_(quantised, config)
    results[name] = relative_error(quantised(ids, mask).logits)

lora = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["q", "k", "v"], init_lora_weights=False)).eval()
adapted = lora(input_ids=ids, attention_mask=mask, labels=ids)
adapted.loss.backward()
trained = {name.split(".lora_")[0].rpartition(".")[2] for name, p in lora.named_parameters() if p.grad is not None}
lora.save_pretrained(sys.argv[1])
reloaded = PeftModel.from_pretrained(copy.deepcopy(model), sys.argv[1]).eval()
results |= {
    "lora changes": relative_error(adapted.logits),
    "lora trains": sorted(trained),
    "lora reloaded": relative_error(reloaded(input_ids=ids, attention_mask=mask).logits, adapted.logits),
    "lora merged": relative_error(lora.merge_and_unload()(ids, mask).logits, adapted.logits),
}

prompted = get_peft_model(
    copy.deepcopy(model), PromptTuningConfig(task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=4)
).eval()
logits = prompted(input_ids=ids, attention_mask=mask).logits
logits.sum().backward()
prompt = prompted.prompt_encoder["default"].embedding.weight
expected = model(inputs_embeds=torch.cat([prompt.expand(2, 4, 128), model.encoder(ids)], 1)).logits
results |= {"prompt": relative_error(logits, expected), "prompt trains": bool(prompt.grad.abs().sum() > 0)}
print(json.dumps(results))
