"""Export a model to one of the layouts, or convert one into another: `python -m amplify_ds.export SOURCE OUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

from amplify_ds.errors import command
from amplify_ds.shell import next_commands

DESCRIPTION = """\
Write a model as a folder that others can use, with tokenizer, model card and provenance. SOURCE is a run (its newest
checkpoint), a checkpoint, a model folder in any of these layouts, or a model of the Hugging Face hub.

  hf              the published chandar-lab/AMPLIFY layout. AutoModel, AutoModelForMaskedLM and AutoTokenizer load it
                  with torch and transformers alone (trust_remote_code=True)
  te              NVIDIA's TransformerEngine layout: q, k, v in one, vocabulary padded to 32
  megatron        the Megatron-Core layout of NVIDIA's NeMo port
  megatron-local  the same for Megatron-Core without TransformerEngine

Conversions lose nothing: hf -> te -> hf and the like give the same bits. The folder's logits are compared with the
source's before it is given its name.

  python -m amplify_ds.export runs/first exported/first
  python -m amplify_ds.export runs/first exported/first-te --layout te
  python -m amplify_ds.export chandar-lab/AMPLIFY_120M exported/AMPLIFY_120M --layout megatron
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="amplify_ds.export", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="run, checkpoint, model folder, or NAME[@REVISION] on the hub")
    parser.add_argument("target", metavar="OUT", type=Path, help="the folder to make; it must not exist")
    parser.add_argument(
        "--layout", choices=("hf", "te", "megatron", "megatron-local"), default="hf", help="(default: hf)"
    )
    arguments = parser.parse_args()
    from amplify_ds.hub.export import export

    found, difference = export(arguments.source, arguments.target, arguments.layout)
    step = f", step {found.history['step']}" if "step" in found.history else ""
    print(
        f"exported {found.path} ({found.layout} layout{step}) to {arguments.target} ({arguments.layout} layout); "
        f"logits agree within {difference:.0e} of the largest"
    )
    if arguments.layout == "hf":
        print(f"next: AutoModelForMaskedLM.from_pretrained({str(arguments.target)!r}, trust_remote_code=True)")
    else:
        print(f"{arguments.target / 'model.safetensors'} is for the model of that layout")
        print(next_commands(("python", "-m", "amplify_ds.evaluate", "--model", arguments.target, "--data", "SHARDS")))
    return 0


if __name__ == "__main__":
    command(main)
