"""The exported tokenizer and the shard writer's encode give the same ids for every string."""

from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from amplify_ds.hub.tokenizer import build_tokenizer, write_tokenizer
from amplify_ds.vocab import BOS, EOS, SPECIAL, encode

TOKENIZER = build_tokenizer()
pieces = st.one_of(
    st.text(alphabet="LAGVSERTIDPKQNFYMHWCBXZUOJ|*-. \n", max_size=40),
    st.text(alphabet="lagvsertidpkqnfymhwcbxzuoj", max_size=10),
    st.sampled_from([*SPECIAL, "<MASK>", "<mask", "mask>", "<<mask>>", "ß", "é", "e\u0301", "İ", "Å", "\U0001f9ec"]),
    st.sampled_from(["<ma sk>", "<ma\xa0sk>", " ", "\t\r\n", "\u3000"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
)


@given(st.lists(pieces, max_size=6).map("".join))
@example("KA<mask>ISQ")
@example("EVQLVE|DIQMTQ")
@example(" leading and trailing ")
def test_same_ids_for_every_string(text):
    expected = encode(text).tolist()
    assert TOKENIZER.encode(text, add_special_tokens=False).ids == expected
    assert TOKENIZER.encode(text).ids == [BOS, *expected, EOS]


@given(st.lists(pieces, max_size=6).map("".join))
def test_decoded_text_encodes_to_the_same_ids(text):
    ids = TOKENIZER.encode(text).ids
    decoded = TOKENIZER.decode(ids, skip_special_tokens=False)
    assert TOKENIZER.encode(decoded, add_special_tokens=False).ids == ids


def test_offsets_refer_to_the_original_text():
    text = " M k\n<mask>\u3000X L"
    encoding = TOKENIZER.encode(text, add_special_tokens=False)
    assert encoding.ids == encode("MK<mask>XL").tolist()
    assert [text[a:b] for a, b in encoding.offsets] == ["M", "k", "<mask>", "X", "L"]


def test_the_published_example_through_autotokenizer(tmp_path):
    write_tokenizer(tmp_path, 512)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("KA<mask>ISQ", add_special_tokens=False)["input_ids"] == [17, 7, 2, 14, 10, 18]
    assert tokenizer("ka|X")["input_ids"] == [3, 17, 7, 5, 1, 4]
    assert tokenizer(["KAI", "K"], padding=True)["input_ids"] == [[3, 17, 7, 14, 4], [3, 17, 4, 0, 0]]
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (2, 0, 1)
    assert len(tokenizer) == 27 and tokenizer.model_max_length == 512
    assert tokenizer.decode([17, 7, 2]) == "K A <mask>"  # AMPLIFY's attribution notebook splits at spaces
    assert tokenizer("K A\n<mask> ", add_special_tokens=False)["input_ids"] == [17, 7, 2]
