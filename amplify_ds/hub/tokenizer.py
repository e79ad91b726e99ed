"""The Hugging Face tokenizer: a fast tokenizer that gives the same ids as vocab.encode for every string.

One token per code point: white space is dropped, ASCII lower case becomes upper case, any other character becomes
<unk>, and the five special tokens are recognised where they are spelt out. A call adds <bos> and <eos>. Decoding puts
spaces between tokens, at which AMPLIFY's attribution notebook splits the text; the result encodes to the same ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_lowercase

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from amplify_ds.vocab import BOS, EOS, SPECIAL, TOKENS, WHITE_SPACE


def build_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<unk>"))
    no_space = normalizers.Replace(Regex(f"[{WHITE_SPACE}]+"), "")
    upper_case = [normalizers.Replace(c, c.upper()) for c in ascii_lowercase]
    tokenizer.normalizer = normalizers.Sequence([no_space, *upper_case])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> <bos> $B <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return tokenizer


def write_tokenizer(folder: Path, max_length: int) -> None:
    """Write the files that AutoTokenizer loads, without remote code, to `folder`."""
    build_tokenizer().save(str(folder / "tokenizer.json"))
    names = {f"{token.strip('<>')}_token": token for token in SPECIAL}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **names,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n")
