"""Load an exported model with torch and transformers only, without amplify_ds: `python launch/try_export.py FOLDER`.

Prints the shape of the embeddings of a protein and the five most likely residues at a masked position.
"""

import argparse
import sys
from pathlib import Path

# From here on `import amplify_ds` fails: the folder must work without it.
sys.modules["amplify_ds"] = None  # type: ignore[assignment]  # documented by Python, but missing in its stubs

# Acyl carrier protein of Rickettsia prowazekii, UniProt Q9ZCH9, one of the bundled validation proteins. The serine of
# its DSL motif, which nearly all acyl carrier proteins share, carries the prosthetic group.
PROTEIN = "MEFKIMSTTDKIEQKVIEMVAEKLNKDKAIITTDSRFIEDLKADSLDTVELMMAIEVEYGIDIPDDEATKIKTVSDVIKYIKERQS"
POSITION = PROTEIN.index("DSLDT") + 1  # counted from 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a folder written by amplify_ds.export")
    folder = parser.parse_args().folder
    if not Path(folder, "config.json").exists():
        parser.error(f"{folder} is not a model folder: it has no config.json; create one with amplify_ds.export")

    import torch
    from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    encoder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    masked = PROTEIN[:POSITION] + "<mask>" + PROTEIN[POSITION + 1 :]
    with torch.no_grad():
        embeddings = encoder(**tokenizer(PROTEIN, return_tensors="pt")).last_hidden_state
        logits = model(**tokenizer(masked, return_tensors="pt")).logits
    print(f"acyl carrier protein, {len(PROTEIN)} residues with <bos> and <eos>: embeddings {tuple(embeddings.shape)}")
    probabilities = logits[0, POSITION + 1].softmax(-1)
    best = [f"{tokenizer.convert_ids_to_tokens(int(i))} {probabilities[i]:.1%}" for i in probabilities.topk(5).indices]
    print(f"residue {POSITION + 1} masked (it is {PROTEIN[POSITION]}): {', '.join(best)}")


if __name__ == "__main__":
    main()
