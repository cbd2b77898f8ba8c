# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of an exported folder answers as the one of transformers that it was saved from."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from treespec import demo
from treespec.export.manifest import FILE_NAME
from treespec.text import ExportedTokenizer, TextStream, load_tokenizer

CORPUS = [
    "def add(a, b):\n    return a + b\n",
    "The quick brown fox, it seems, jumps over the lazy dog's bowl . Is n't it ?",
    "Größe, café, 你好, 🙂 and some more words to learn from",
] * 4
TEXTS = [*CORPUS[:3], "", " leading", "a<eos>b <s> c", "unseen: ÿ𝄞\u200b", "two  spaces \n\n"]


def gpt2_style():
    """Byte level, nothing before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<eos>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", clean_up_tokenization_spaces=True
    )


def llama_style():
    """Pieces with byte fallback, `<s>` before every text, tokens that only the config names."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*spaces, decoders.Strip(" ", 1, 0)])
    specials = ["<unk>", "<s>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(CORPUS, BpeTrainer(vocab_size=400, special_tokens=specials))
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<eos>", pad_token="<pad>"
    )


def truncating_unigram():
    """One whose file says to cut and to pad."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = UnigramTrainer(vocab_size=120, special_tokens=["<unk>", "<eos>"], unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=32)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def cleaning_word_piece():
    """One whose texts transformers cleans up."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = WordPieceTrainer(vocab_size=200, special_tokens=["<unk>", "<eos>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", clean_up_tokenization_spaces=True
    )


def demo_tokenizer():
    return AutoTokenizer.from_pretrained(demo.target_path())


LIGHT = [demo_tokenizer, gpt2_style, llama_style, truncating_unigram]


@pytest.fixture(params=LIGHT)
def pair(request, tmp_path):
    """The folder's tokenizer and that of transformers."""
    request.param().save_pretrained(tmp_path)
    (tmp_path / FILE_NAME).write_text("{}")
    return load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)


def test_it_needs_no_transformers(pair):
    assert isinstance(pair[0], ExportedTokenizer)


def test_texts_become_the_same_tokens_and_tokens_the_same_text(pair):
    ours, theirs = pair
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours(text)["input_ids"] == ids
        for skipped in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skipped)
            assert ours.decode(ids, skip_special_tokens=skipped) == expected
        for token in ids:
            assert ours.decode([token]) == theirs.decode([token])
            assert ours.convert_ids_to_tokens(token) == theirs.convert_ids_to_tokens(token)


def test_the_vocabulary_is_the_same(pair):
    ours, theirs = pair
    assert ours.get_vocab() == theirs.get_vocab()
    assert len(ours) == len(theirs)


def test_streams_show_the_same_text(pair):
    ours, theirs = pair
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        streams = [TextStream(tokenizer, ["fox", "🙂"]) for tokenizer in pair]
        ended = [[stream.push(token) for token in ids] for stream in streams]
        assert ended[0] == ended[1]
        assert streams[0].finish() == streams[1].finish()
    assert len(ours) == len(theirs)


def test_one_that_cleans_its_texts_is_left_to_transformers(tmp_path):
    cleaning_word_piece().save_pretrained(tmp_path)
    (tmp_path / FILE_NAME).write_text("{}")
    tokenizer = load_tokenizer(str(tmp_path))
    assert not isinstance(tokenizer, ExportedTokenizer)
    ids = tokenizer("it is n't , so")["input_ids"]
    assert " n't" not in tokenizer.decode(ids)


def test_a_folder_without_a_tokenizer_has_none(tmp_path):
    (tmp_path / FILE_NAME).write_text("{}")
    assert load_tokenizer(str(tmp_path)) is None


def test_chat_templates_are_those_of_transformers(tmp_path):
    theirs = gpt2_style()
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    (tmp_path / FILE_NAME).write_text("{}")
    theirs.save_pretrained(tmp_path)
    assert not load_tokenizer(str(tmp_path)).chat_template
    theirs.chat_template = template
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(str(tmp_path))
    assert ours.chat_template
    messages = [{"role": "user", "content": "add"}]
    options = {"tokenize": True, "return_dict": False}
    assert ours.apply_chat_template(messages, **options) == theirs.apply_chat_template(
        messages, **options
    )
    (tmp_path / "chat_template.jinja").unlink()  # as older versions saved it
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = template
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(str(tmp_path)).chat_template
