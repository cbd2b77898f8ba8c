# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of examples/cpp_service beside the Hugging Face ones that it was made from."""

from __future__ import annotations

import inspect
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from installed_package import build_with_cmake, run
from test_cpp_service import SOURCE, why_it_cannot_be_built
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from treespec import demo

pytestmark = pytest.mark.slow

# How Llama 3 cuts a text before it joins bytes; GPT-2's is what ByteLevel does by itself.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = "<|endoftext|>"

PROBE = """
#include <iostream>
#include <nlohmann/json.hpp>
#include "tokenizer.h"

int main(int, char** argv) {
  const service::Tokenizer tokenizer(argv[1]);
  const auto given = nlohmann::json::parse(std::cin);
  nlohmann::json found{{"ids", nlohmann::json::array()}, {"texts", nlohmann::json::array()}};
  for (const std::string text : given["texts"]) found["ids"].push_back(tokenizer.encode(text));
  for (const std::vector<int32_t> ids : given["ids"]) {
    found["texts"].push_back(tokenizer.decode(ids.data(), ids.size()));
  }
  std::cout << found;
}
"""
PROJECT = """
cmake_minimum_required(VERSION 3.24)
project(probe LANGUAGES CXX)
find_package(nlohmann_json REQUIRED)
find_package(OpenVINO REQUIRED COMPONENTS Runtime)
find_library(OPENVINO_TOKENIZERS openvino_tokenizers REQUIRED
  HINTS ${OpenVINO_DIR}/../../openvino_tokenizers/lib)
add_executable(probe probe.cc ${SERVICE}/tokenizer.cc)
target_compile_features(probe PRIVATE cxx_std_17)
target_include_directories(probe PRIVATE ${SERVICE})
target_link_libraries(probe PRIVATE
  nlohmann_json::nlohmann_json openvino::runtime ${OPENVINO_TOKENIZERS})
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """``probe(folder, texts, ids)``: the ids of the texts, and the texts of the ids."""
    if missing := why_it_cannot_be_built():
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.cc").write_text(PROBE)
    (folder / "CMakeLists.txt").write_text(PROJECT)
    ask = "import openvino.utils as utils; print(utils.get_cmake_path())"
    place = run(sys.executable, "-c", ask).strip()
    build_with_cmake(folder, folder / "build", f"-DOpenVINO_DIR={place}", f"-DSERVICE={SOURCE}")

    def ask_program(tokenizer, texts, ids):
        given = json.dumps({"texts": texts, "ids": ids})
        found = json.loads(run(folder / "build/probe", tokenizer, input=given))
        return found["ids"], found["texts"]

    return ask_program


def sources():
    """Texts that are there wherever Python is."""
    return [inspect.getsource(module) for module in (inspect, json, random, subprocess)]


def trained(pre_tokenizer):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, special_tokens=[SPECIAL])
    tokenizer.train_from_iterator(sources(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL)


TOKENIZERS = {
    "demo": lambda: AutoTokenizer.from_pretrained(demo.target_path()),
    "GPT-2": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "Llama 3": lambda: trained(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    ),
}


def some_texts(rng):
    """Pieces of sources, and characters of every plane, of every length."""
    planes = [(0, 0x250), (0x370, 0x600), (0x4E00, 0x5000), (0x1F300, 0x1F700), (0, 0xD800)]
    for whole in sources():
        for _ in range(40):
            begin = rng.randrange(len(whole))
            yield whole[begin : begin + rng.randrange(400)]
    for _ in range(150):
        low, high = rng.choice(planes)
        yield "".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(40)))
    yield from ("", " ", "\r\n\r\n", "it's WE'LL 1234567", f"a{SPECIAL}{SPECIAL} b", "👩‍👩‍👧\ufeff")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_and_texts_are_those_of_hugging_face(probe, rng, tmp_path, name):
    theirs = TOKENIZERS[name]()
    theirs.save_pretrained(tmp_path)
    convert = [Path(sys.executable).parent / "convert_tokenizer", tmp_path, "-o", tmp_path]
    run(*convert, "--with-detokenizer", "--utf8_replace_mode", "disable")
    draw = random.Random(int(rng.integers(2**32)))
    texts = list(some_texts(draw))
    ids = [[draw.randrange(len(theirs)) for _ in range(draw.randrange(1, 40))] for _ in range(400)]
    found_ids, found_texts = probe(tmp_path, texts, ids)
    assert found_ids == [theirs(text)["input_ids"] for text in texts]
    assert found_texts == [theirs.decode(one, skip_special_tokens=True) for one in ids]
