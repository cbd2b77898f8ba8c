# SPDX-License-Identifier: Apache-2.0
"""The C++ service of examples/cpp_service, built by its README and asked over HTTP."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from exported_models import exported
from filelock import FileLock
from installed_package import IS_EDITABLE, ROOT, run

import treespec

httpx = pytest.importorskip("httpx")

SOURCE = ROOT / "examples/cpp_service"
PROMPTS = json.loads((ROOT / "python/treespec/demo/prompts.json").read_text())
PROMPT = PROMPTS[0]
# Ends at its length limit alone, and takes seconds: to be there while something happens.
LONG = {"prompt": PROMPT, "max_tokens": 600, "temperature": 0.8, "seed": 3, "ignore_eos": True}
PATIENCE = 120.0  # seconds; the machine may be busy
IN_PEACE = ("--drain-seconds", "1000")


def why_it_cannot_be_built():
    """What is missing, or nothing."""
    if not os.environ.get("ONNXRUNTIME_ROOT"):
        return "ONNXRUNTIME_ROOT must name a folder with ONNX Runtime's headers and library"
    for library in ("cpp-httplib", "CLI11", "nlohmann_json"):
        if not shutil.which("pkg-config") or subprocess.run(["pkg-config", library]).returncode:
            return f"{library} must be installed (examples/cpp_service/README.md)"
    for module in ("openvino", "openvino_tokenizers", "onnxruntime", "onnxscript"):
        if subprocess.run([sys.executable, "-c", f"import {module}"]).returncode:
            return f"{module} must be installed (examples/cpp_service/README.md)"
    return ""


def commands_of_the_readme(cmake_dir):
    """The block that builds; an editable install has its CMake package elsewhere."""
    text = (SOURCE / "README.md").read_text()
    (block,) = re.findall(r"<!-- ci: service -->\n```bash\n(.*?)```", text, re.DOTALL)
    ask = "$(python -m treespec --cmake-dir)"
    assert ask in block
    return block.replace(ask, str(cmake_dir)) if IS_EDITABLE else block


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A clean copy of the example, built there once for all workers."""
    missing = why_it_cannot_be_built()
    if missing:
        pytest.skip(missing)
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    copy, built = base / "cpp_service", base / "cpp_service.built"
    with FileLock(base / "cpp_service.lock"):
        if not built.exists():
            from installed_package import find_cmake_dir

            commands = commands_of_the_readme(find_cmake_dir(tmp_path_factory))
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(SOURCE, copy)
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            environment = {**os.environ, "PATH": path}
            run("bash", "-euo", "pipefail", "-c", commands, cwd=copy, env=environment)
            built.touch()
    return copy


@dataclass
class Server:
    """A running service."""

    process: subprocess.Popen
    url: str
    client: httpx.Client

    def post(self, **fields):
        return self.client.post("/v1/completions", json=fields)

    def complete(self, **fields):
        answer = self.post(**fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def text(self, **fields):
        return self.complete(**fields)["choices"][0]["text"]

    def stream(self, **fields):
        return self.client.stream("POST", "/v1/completions", json={**fields, "stream": True})

    def events(self, **fields):
        with self.stream(**fields) as answer:
            assert answer.status_code == 200
            return list(events_of(answer))

    def metrics(self):
        """Samples by name and labels."""
        lines = self.client.get("/metrics").text.splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def wait_for(self, name, value):
        """Until a metric has this value."""
        end = time.monotonic() + PATIENCE
        while (now := self.metrics().get(f"treespec_{name}", 0.0)) != value:
            assert time.monotonic() < end, f"{name} stays {now}, not {value}"
            time.sleep(0.02)

    def stop(self):
        """Ask it to end; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


def events_of(answer):
    """The JSON of a stream's events; the last one must be [DONE]."""
    lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    yield from map(json.loads, lines)


def joined(events):
    return "".join(event["choices"][0]["text"] for event in events if event["choices"])


def launch(folder, *options, model="demo", port=0):
    command = [folder / "build/cpp_service", folder / model, "--port", port, *options]
    words = [str(word) for word in command]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def serving(folder, *options, model="demo"):
    with launch(folder, *options, model=model) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("listening on "), process.stderr.read()
            url = line.split()[-1]
            with httpx.Client(base_url=url, timeout=PATIENCE) as client:
                yield Server(process, url, client)
        finally:
            process.kill()


@pytest.fixture(scope="session")
def server(folder):
    """Two slots, for tests that leave it as it was."""
    with serving(folder, "--slots", "2", "--queue", "16") as running:
        yield running


@pytest.fixture(scope="session")
def long_text(server):
    return server.text(**LONG)


@pytest.fixture(scope="session")
def plain():
    """Plain decoding in Python, on PyTorch: what the service must say."""
    return treespec.load("demo", drafter=None)


def expected_text(plain, prompt, max_tokens, **settings):
    settings = {"temperature": 1.0, "top_p": 1.0, **settings}
    return plain.generate(prompt, max_new_tokens=max_tokens, **settings).text


# --- the text -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_greedy_answer_is_pythons(server, plain, prompt):
    want = expected_text(plain, prompt, 48, temperature=0.0)
    assert server.text(prompt=prompt, max_tokens=48, temperature=0) == want


@pytest.mark.parametrize(("seed", "prompt"), list(enumerate(PROMPTS)))
def test_a_seeded_answer_is_pythons(server, plain, seed, prompt):
    settings = {"temperature": 0.8, "top_p": 0.95, "seed": seed}
    want = expected_text(plain, prompt, 48, **settings)
    assert server.text(prompt=prompt, max_tokens=48, **settings) == want


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 8},
        {"min_p": 0.05},
        {"presence_penalty": 0.8, "frequency_penalty": 0.3},
        {"repetition_penalty": 1.3, "temperature": 0.0},
        {"seed": 2**64 - 1},
        {"logit_bias": {7: -100.0, 300: 3.5, 2047: 2.0}},
    ],
    ids=str,
)
def test_every_sampling_parameter_means_what_it_means_in_python(server, plain, settings):
    settings = {"temperature": 0.9, "seed": 11, **settings}
    want = expected_text(plain, PROMPT, 40, **settings)
    assert server.text(prompt=PROMPT, max_tokens=40, **settings) == want


@pytest.mark.parametrize(
    "prompt",
    ["ß→漢字 = '👩‍👩‍👧'\n", "\t\r\n  x\x00y", "<|endoftext|>def", " " * 50, "é" * 300, "\ufeffа́"],
)
def test_any_text_is_read_as_pythons_tokenizer_reads_it(server, plain, prompt):
    settings = {"temperature": 0.8, "seed": 4}
    answer = server.complete(prompt=prompt, max_tokens=12, **settings)
    assert answer["usage"]["prompt_tokens"] == len(plain.tokenizer(prompt)["input_ids"])
    assert answer["choices"][0]["text"] == expected_text(plain, prompt, 12, **settings)


@pytest.mark.parametrize("seed", range(4))
def test_bytes_that_are_no_character_are_shown_as_python_shows_them(server, plain, seed):
    settings = {"temperature": 50.0, "seed": seed}  # about a fifth of the tokens are lone bytes
    want = expected_text(plain, PROMPT, 200, **settings, ignore_eos=True)
    assert "\ufffd" in want
    fields = {"prompt": PROMPT, "max_tokens": 200, "ignore_eos": True, **settings}
    assert server.text(**fields) == want
    assert joined(server.events(**fields)) == want


def test_a_text_over_several_blocks_of_the_caches_is_pythons(plain, long_text):
    settings = {name: value for name, value in LONG.items() if name not in ("prompt", "max_tokens")}
    assert long_text == expected_text(plain, LONG["prompt"], LONG["max_tokens"], **settings)


def test_a_prompt_of_token_ids_is_the_text_they_stand_for(server, plain):
    ids = plain.tokenizer(PROMPT)["input_ids"]
    settings = {"max_tokens": 24, "temperature": 0}
    assert server.text(prompt=ids, **settings) == server.text(prompt=PROMPT, **settings)


def test_pieces_of_a_stream_are_the_answer(server):
    for seed in range(4):
        fields = {"prompt": PROMPTS[seed], "max_tokens": 40, "seed": seed, "temperature": 0.9}
        whole, events = server.complete(**fields), server.events(**fields)
        assert joined(events) == whole["choices"][0]["text"]
        reasons = [event["choices"][0]["finish_reason"] for event in events]
        assert reasons[-1] == whole["choices"][0]["finish_reason"]
        assert set(reasons[:-1]) <= {None}
        assert len({event["id"] for event in events}) == 1
        assert events[-1]["speculation"] == whole["speculation"]


def test_a_stream_comes_while_it_is_generated(server):
    started = time.monotonic()
    with server.stream(**{**LONG, "max_tokens": 200}) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["x-accel-buffering"] == "no"  # nginx would hold them back
        lines = answer.iter_lines()
        next(lines)
        first = time.monotonic() - started
        text = sum(1 for _ in lines)
    assert text > 30
    assert first < (time.monotonic() - started) / 2


def test_usage_is_told_when_it_is_asked_for(server):
    fields = {"prompt": PROMPT, "max_tokens": 10, "temperature": 0}
    whole = server.complete(**fields)["usage"]
    *events, last = server.events(**fields, stream_options={"include_usage": True})
    assert last["usage"] == whole
    assert last["choices"] == []
    assert all(event["usage"] is None for event in events)
    assert whole["total_tokens"] == whole["prompt_tokens"] + whole["completion_tokens"]
    assert whole["completion_tokens"] == 10
    assert all("usage" not in event for event in server.events(**fields))


def stops_within(text):
    """Stop strings that end in the middle of it, over token borders and within tokens."""
    return [text[9:11], text[5:14], text[-7:-2], text[3:4]]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_stop_strings_cut_the_text_where_plain_decoding_stops(server, plain, temperature):
    settings = {"temperature": temperature, "seed": 6}
    full = expected_text(plain, PROMPT, 32, **settings)
    for stop in [*stops_within(full), [full[20:23], full[12:15]], [full[8:10], "not there"]]:
        want = plain.generate(PROMPT, max_new_tokens=32, stop=stop, **settings)
        fields = {"prompt": PROMPT, "max_tokens": 32, "stop": stop, **settings}
        answer = server.complete(**fields)
        assert answer["choices"][0]["text"] == want.text
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == len(want.token_ids)
        assert joined(server.events(**fields)) == want.text


def test_no_piece_of_a_stream_is_ever_taken_back(server, plain):
    """What has been sent is a beginning of the final text, whatever the stop strings."""
    full = expected_text(plain, PROMPT, 32, temperature=0.0)
    stop = full[12:20]
    so_far = ""
    for event in server.events(prompt=PROMPT, max_tokens=32, temperature=0, stop=stop):
        so_far += event["choices"][0]["text"]
        assert full[: full.index(stop)].startswith(so_far)


def test_end_of_text_stops_unless_it_is_ignored(server, plain):
    for seed in range(200):
        fields = {"prompt": PROMPT, "max_tokens": 60, "temperature": 1.5, "seed": seed}
        ended = server.complete(**fields)
        if ended["choices"][0]["finish_reason"] == "stop":
            break
    want = plain.generate(PROMPT, max_new_tokens=60, temperature=1.5, seed=seed)
    went_on = server.complete(**fields, ignore_eos=True)
    assert want.finish_reason == "eos"
    assert ended["choices"][0]["text"] == want.text
    assert ended["choices"][0]["finish_reason"] == "stop"
    assert ended["usage"]["completion_tokens"] == len(want.token_ids) < 60
    assert went_on["choices"][0]["finish_reason"] == "length"
    assert went_on["choices"][0]["text"].startswith(ended["choices"][0]["text"])


def test_the_seed_in_an_answer_gives_it_again(server):
    first = server.complete(prompt=PROMPT, max_tokens=24)
    seed = first["speculation"]["seed"]
    again = server.complete(prompt=PROMPT, max_tokens=24, seed=seed)
    assert again["choices"] == first["choices"]
    assert server.complete(prompt=PROMPT, max_tokens=24)["speculation"]["seed"] != seed


def test_speculation_saves_forwards_and_says_so(server):
    answer = server.complete(prompt=PROMPT, max_tokens=64, temperature=0)
    figures = answer["speculation"]
    # The first token comes from the prompt's forward.
    per_forward = (answer["usage"]["completion_tokens"] - 1) / figures["target_forwards"]
    assert figures["tokens_per_forward"] == pytest.approx(per_forward)
    assert per_forward > 1.3


@pytest.mark.parametrize(
    "options",
    [
        ["--drafter", "suffix", "--builder", "trie", "--nodes", "16"],
        ["--drafter", "ngram", "--builder", "chain", "--max-depth", "4"],
        ["--drafter", "none"],
        ["--builder", "eagle2", "--nodes", "20", "--threads", "2"],
    ],
    ids=" ".join,
)
def test_the_text_is_the_same_with_any_drafter_and_tree(folder, server, options):
    fields = {"prompt": PROMPT, "max_tokens": 48, "temperature": 0.7, "seed": 9}
    with serving(folder, *options) as other:
        assert other.text(**fields) == server.text(**fields)
        assert other.text(**{**fields, "temperature": 0}) == (
            server.text(**{**fields, "temperature": 0})
        )


@pytest.mark.slow
def test_a_drafter_on_the_targets_states_gives_the_same_text(folder, plain, tmp_path_factory):
    """A target that puts out the features which its drafter reads, and the tokenizer beside it."""
    export, pair = exported("demo", tmp_path_factory), tmp_path_factory.mktemp("pair")
    for path in (*export.iterdir(), *(folder / "demo").glob("openvino_*")):
        (pair / path.name).symlink_to(path)
    options = ["--drafter", pair / "treeflash", "--builder", "dtree", "--nodes", "16"]
    with serving(folder, *options, model=pair) as running:
        for seed, prompt in enumerate(PROMPTS[:3]):
            settings = {"temperature": 0.7, "seed": seed}
            answer = running.complete(prompt=prompt, max_tokens=40, **settings)
            assert answer["choices"][0]["text"] == expected_text(plain, prompt, 40, **settings)
            assert answer["speculation"]["tokens_per_forward"] > 1.3


# --- many clients ---------------------------------------------------------------------------------


def test_clients_side_by_side_get_their_own_answers(folder, plain):
    jobs = list(itertools.product(range(4), PROMPTS))[:24]
    want = [expected_text(plain, prompt, 24, temperature=0.8, seed=seed) for seed, prompt in jobs]

    def ask(job):
        seed, prompt = job
        fields = {"prompt": prompt, "max_tokens": 24, "temperature": 0.8, "seed": seed}
        if seed % 2:
            return joined(running.events(**fields))
        return running.text(**fields)

    with serving(folder, "--slots", "2", "--queue", "8") as running:
        with ThreadPoolExecutor(8) as clients:
            assert list(clients.map(ask, jobs)) == want
        counts = running.metrics()
        ended = [counts[name] for name in counts if 'status="200"' in name]
        assert sum(ended) == len(jobs)
        assert counts["treespec_requests_running"] == counts["treespec_requests_waiting"] == 0


def test_a_full_line_is_refused_at_once_and_told_when_to_come_again(folder):
    with serving(folder, "--slots", "1", "--queue", "1") as running:
        with ThreadPoolExecutor(2) as clients:
            busy = [clients.submit(running.complete, **LONG)]
            running.wait_for("requests_running", 1)
            busy.append(clients.submit(running.text, prompt="a", max_tokens=1))
            running.wait_for("requests_waiting", 1)
            refused = running.post(prompt="b", max_tokens=1)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert "at most 1" in refused.json()["error"]["message"]
            assert busy[0].result()["usage"]["completion_tokens"] == LONG["max_tokens"]
            busy[1].result()
        assert running.post(prompt="b", max_tokens=1).status_code == 200
        assert running.metrics()['treespec_requests_total{status="429",result="refused"}'] == 1


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_hangs_up_frees_its_slot(folder, stream):
    with serving(folder, "--slots", "1") as running:
        gone = 'requests_total{status="499",result="disconnected"}'
        for count in (1, 2):
            request = json.dumps({**LONG, "stream": stream}).encode()
            with raw_request(running, request) as connection:
                running.wait_for("requests_running", 1)
                if stream:
                    received = b""
                    while b"data: " not in received:
                        received += connection.recv(4096)
            running.wait_for(gone, count)
            running.wait_for("requests_running", 0)
        assert running.metrics()["treespec_completion_tokens_total"] < LONG["max_tokens"]
        assert running.text(prompt=PROMPT, max_tokens=4, temperature=0)


def test_ipv6_is_served_and_its_clients_may_hang_up_too(folder):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving(folder, "--host", "::1") as running:
        assert re.fullmatch(r"http://\[::1\]:\d+", running.url)
        assert running.text(prompt=PROMPT, max_tokens=2, temperature=0)
        with raw_request(running, json.dumps(LONG).encode()):
            running.wait_for("requests_running", 1)
        running.wait_for('requests_total{status="499",result="disconnected"}', 1)


def test_a_client_that_will_send_no_more_counts_as_gone(folder):
    request = json.dumps(LONG).encode()
    with serving(folder) as running, raw_request(running, request) as connection:
        running.wait_for("requests_running", 1)
        connection.shutdown(socket.SHUT_WR)
        running.wait_for('requests_total{status="499",result="disconnected"}', 1)


def test_a_client_that_hangs_up_before_the_last_token_counts_as_one(folder):
    with serving(folder) as running:
        request = json.dumps({"prompt": [5] * 2000, "max_tokens": 1}).encode()
        with raw_request(running, request):
            running.wait_for("requests_running", 1)
        running.wait_for('requests_total{status="499",result="disconnected"}', 1)


def test_a_client_that_hangs_up_in_line_is_forgotten(folder):
    with serving(folder, "--slots", "1") as running, ThreadPoolExecutor(1) as clients:
        busy = clients.submit(running.complete, **LONG)
        running.wait_for("requests_running", 1)
        with raw_request(running, json.dumps({"prompt": "a"}).encode()):
            running.wait_for("requests_waiting", 1)
        running.wait_for("requests_waiting", 0)
        running.wait_for('requests_total{status="499",result="disconnected"}', 1)
        assert busy.result()["usage"]["completion_tokens"] == LONG["max_tokens"]


def raw_request(server, body, length=None):
    """A connection on which a request was sent, to be closed at any time."""
    url = httpx.URL(server.url)
    connection = socket.create_connection((url.host, url.port), timeout=PATIENCE)
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def test_a_client_that_sends_no_more_is_given_up(folder):
    with serving(folder, "--read-timeout", "1") as running:
        with raw_request(running, b'{"prompt": ', length=100) as connection:
            answer = connection.recv(4096)  # an error, or nothing: the connection ends
            assert not answer or b" 400 " in answer.splitlines()[0]
        assert running.text(prompt=PROMPT, max_tokens=2, temperature=0)


def test_a_client_that_reads_no_more_is_given_up(folder):
    # Every event holds the name: more than all buffers on the way take.
    options = ["--slots", "1", "--write-timeout", "1", "--name", "x" * 50_000]
    with serving(folder, *options) as running:
        with raw_request(running, json.dumps({**LONG, "stream": True}).encode()):
            running.wait_for("requests_running", 1)
            running.wait_for("requests_running", 0)
        running.wait_for('requests_total{status="499",result="disconnected"}', 1)
        assert running.text(prompt=PROMPT, max_tokens=2, temperature=0)


# --- refusals -------------------------------------------------------------------------------------

BAD_FIELDS = [
    ("prompt", 5, "a text or a list"),
    ("prompt", "", "at least one token"),
    ("prompt", [], "not empty"),
    ("prompt", [1, "a"], '"a"'),
    ("prompt", [-1], "-1"),
    ("prompt", [2048], "[0, 2048)"),
    ("prompt", [1.5], "1.5"),
    ("prompt", ["a", "b"], '"a"'),
    ("prompt", None, "must be given"),
    ("max_tokens", 0, "[1, 2^31)"),
    ("max_tokens", -3, "-3"),
    ("max_tokens", "9", '"9"'),
    ("max_tokens", 1.5, "1.5"),
    ("max_tokens", 2**31, "2147483648"),
    ("max_tokens", 2**64, "[1, 2^31)"),
    ("max_tokens", 2048, "2048 tokens together"),
    ("temperature", -0.1, "-0.1"),
    ("temperature", "hot", '"hot"'),
    ("temperature", True, "true"),
    ("top_p", 0, "(0, 1]"),
    ("top_p", 1.01, "1.01"),
    ("min_p", 1, "[0, 1)"),
    ("top_k", -1, "-1"),
    ("top_k", 2.0, "2.0"),
    ("repetition_penalty", 0, "[0.01, 100.0]"),
    ("repetition_penalty", 1e-300, "1e-300"),
    ("presence_penalty", [], "a number"),
    ("presence_penalty", 2.5, "[-2.0, 2.0]"),
    ("frequency_penalty", {}, "a number"),
    ("frequency_penalty", -1e308, "[-2.0, 2.0]"),
    ("logit_bias", [1], "an object"),
    ("logit_bias", {"a": 1}, '"a"'),
    ("logit_bias", {"05": 1}, '"05"'),
    ("logit_bias", {"2048": 1}, "[0, 2048)"),
    ("logit_bias", {"99999999999": 1}, "[0, 2048)"),
    ("logit_bias", {"5": "x"}, '"x"'),
    ("logit_bias", {"5": 100.5}, "[-100, 100]"),
    ("seed", -1, "[0, 2^64)"),
    ("seed", 1.0, "1.0"),
    ("seed", 2**64, "[0, 2^64)"),
    ("stop", "", "1 to 256"),
    ("stop", 3, "3"),
    ("stop", ["a", 4], "4"),
    ("stop", ["a"] * 5, "at most 4"),
    ("stop", "x" * 257, "256"),
    ("stream", 1, "true or false"),
    ("stream", "true", "true or false"),
    ("ignore_eos", "no", "true or false"),
    ("stream_options", {"include_usage": True}, '"stream": true'),
    ("stream_options", {"include_usage": 1}, "true or false"),
    ("stream_options", {"more": 1}, "include_usage alone"),
    ("stream_options", [], "an object"),
    ("n", 2, "be 1"),
    ("n", "1", "be 1"),
    ("user", 7, "a string"),
    ("model", 7, "a string"),
    ("logprobs", 1, "among"),
    ("max_token", 1, "max_tokens"),
]


@pytest.mark.parametrize(("field", "value", "part"), BAD_FIELDS)
def test_a_bad_field_is_named_with_its_rule_and_value(server, field, value, part):
    answer = server.post(**{"prompt": "a", "max_tokens": 2, field: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    named = error["param"].split(".")[0]
    assert named == field
    assert error["type"] == "invalid_request_error"
    assert part in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1e-6, "presence_penalty": -2, "frequency_penalty": -2},
        {"temperature": 1e300, "repetition_penalty": 0.01},
        {"repetition_penalty": 100, "frequency_penalty": 2, "min_p": 0.999999},
        {"top_p": 1e-300, "top_k": 2**31 - 1, "logit_bias": {"0": 100, "1": -100}},
    ],
    ids=str,
)
def test_no_value_that_is_allowed_makes_the_model_fail(server, fields):
    assert server.complete(prompt=PROMPT, max_tokens=30, seed=1, ignore_eos=True, **fields)


def test_another_model_is_not_found(server):
    answer = server.post(prompt="a", model="gpt-9")
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "model"
    assert server.post(prompt="a", model="demo", max_tokens=1).status_code == 200


BAD_BODIES = {
    "nothing": b"",
    "half": b'{"prompt": "a"',
    "no object": b'["prompt"]',
    "not a number": b'{"prompt": "a", "temperature": NaN}',
    "a number without end": b'{"prompt": "a", "temperature": 1e999}',
    "half a surrogate": b'{"prompt": "\\ud800"}',
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "deep": b'{"prompt": ' + b"[" * 200_000 + b"}",
    "deep and closed": b'{"prompt": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "binary": bytes(range(256)) * 4,
}


@pytest.mark.parametrize("body", list(BAD_BODIES.values()), ids=list(BAD_BODIES))
def test_a_body_that_is_no_request_is_refused(server, body):
    answer = server.client.post("/v1/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_fields_that_are_null_count_as_not_given(server):
    fields = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    optional = ["top_p", "seed", "stop", "n", "stream", "stream_options", "user", "model"]
    assert server.text(**fields, **dict.fromkeys(optional)) == server.text(**fields)


def test_a_context_that_fits_exactly_is_served(folder):
    with serving(folder, "--drafter", "suffix") as running:
        answer = running.complete(prompt=[5] * 2000, max_tokens=48, temperature=0, ignore_eos=True)
        assert answer["usage"]["total_tokens"] == 2048
        assert running.post(prompt=[5] * 2000, max_tokens=49).status_code == 400


def resident_bytes(server):
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_long_bodies_are_refused_and_not_kept(folder):
    with serving(folder, "--max-body", "1000") as running:
        answer = running.post(prompt="a" * 1000)
        assert answer.status_code == 413
        assert "1000 bytes" in answer.json()["error"]["message"]
        # Of a length that is told at the end, or that shows when it is unpacked.
        packed = gzip.compress(b" " * 900_000)
        assert len(packed) < 1000
        for content, headers in (
            (iter([b" " * 50_000] * 1000), {}),
            (packed, {"Content-Encoding": "gzip"}),
        ):
            before = resident_bytes(running)
            answer = running.client.post("/v1/completions", content=content, headers=headers)
            assert answer.status_code == 413
            assert resident_bytes(running) - before < 20 << 20
        assert running.post(prompt="a" * 800, max_tokens=1).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/v1/completions"), ("POST", "/v1/chat/completions")]
)
def test_unknown_routes_say_which_there_are(server, method, path):
    answer = server.client.request(method, path)
    assert answer.status_code == 404
    assert "/v1/completions" in answer.json()["error"]["message"]


def test_requests_that_are_no_http_are_refused(server):
    url = httpx.URL(server.url)
    for line in (b"hello\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"GET " + b"a" * 20_000 + b"\r\n\r\n"):
        with socket.create_connection((url.host, url.port), timeout=PATIENCE) as connection:
            connection.sendall(line)
            first = connection.recv(4096).splitlines()[0]
            assert re.match(rb"HTTP/1\.1 4\d\d ", first)
    assert server.client.get("/health").status_code == 200


# --- the end of it --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "stream"), [(signal.SIGTERM, True), (signal.SIGINT, False)], ids=["TERM", "INT"]
)
def test_a_signal_lets_running_answers_end(folder, long_text, kind, stream):
    with serving(folder, *IN_PEACE) as running, ThreadPoolExecutor(1) as clients:
        ask = running.events if stream else running.complete
        answer = clients.submit(ask, **LONG)
        running.wait_for("requests_running", 1)
        running.process.send_signal(kind)
        got = answer.result()
        assert running.process.wait(PATIENCE) == 0
        text = joined(got) if stream else got["choices"][0]["text"]
        assert text == long_text
        with pytest.raises(httpx.ConnectError):
            httpx.get(running.url + "/health")


def test_a_signal_lets_requests_in_line_end(folder):
    options = ["--slots", "1", *IN_PEACE]
    with serving(folder, *options) as running, ThreadPoolExecutor(2) as clients:
        first = clients.submit(running.complete, **LONG)
        running.wait_for("requests_running", 1)
        second = clients.submit(running.complete, prompt=PROMPT, max_tokens=5)
        running.wait_for("requests_waiting", 1)
        assert running.stop() == 0
        assert first.result()["usage"]["completion_tokens"] == LONG["max_tokens"]
        assert second.result()["choices"][0]["text"]


@pytest.mark.parametrize("by", ["time", "second signal"])
def test_answers_that_take_too_long_are_ended_and_told_so(folder, long_text, by):
    seconds = "1" if by == "time" else "1000"
    with serving(folder, "--drain-seconds", seconds) as running, ThreadPoolExecutor(1) as clients:
        answer = clients.submit(running.complete, **{**LONG, "max_tokens": 1800})
        running.wait_for("requests_running", 1)
        running.process.send_signal(signal.SIGTERM)
        if by == "second signal":
            assert running.process.stderr.readline()  # the first one has arrived
            running.process.send_signal(signal.SIGTERM)
        choice = answer.result()["choices"][0]
        assert running.process.wait(PATIENCE) == 0
    assert choice["finish_reason"] == "cancelled"
    assert choice["text"]
    assert long_text.startswith(choice["text"].rstrip("\ufffd")[: len(long_text)])


def test_a_signal_ends_an_idle_service(folder):
    with serving(folder) as running:
        assert running.client.get("/health").json() == {"status": "ok"}
        assert running.stop() == 0


def test_an_answer_ends_at_its_time_limit(folder, long_text):
    with serving(folder, "--timeout", "1") as running:
        answer = running.complete(**LONG)
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "timeout"
    assert 0 < answer["usage"]["completion_tokens"] < LONG["max_tokens"]
    assert long_text.startswith(choice["text"].rstrip("\ufffd"))


# --- around it ------------------------------------------------------------------------------------


def test_there_is_no_python_and_no_torch_in_the_process(server):
    server.text(prompt="a", max_tokens=1)
    maps = Path(f"/proc/{server.process.pid}/maps").read_text().lower()
    files = {Path(line.split()[-1]).name for line in maps.splitlines() if "/" in line}
    assert any("onnxruntime" in name for name in files)
    assert [name for name in files if re.search(r"python|torch|libc10", name)] == []


def test_the_model_is_listed_with_its_context(server):
    (model,) = server.client.get("/v1/models").json()["data"]
    assert model["id"] == "demo"
    assert model["max_model_len"] == 2048


def test_metrics_count_tokens_and_rounds(folder):
    with serving(folder) as running:
        answers = [running.complete(prompt=PROMPT, max_tokens=20, seed=seed) for seed in range(3)]
        counts = running.metrics()
    drafted = sum(answer["speculation"]["drafted_tokens"] for answer in answers)
    forwards = sum(answer["speculation"]["target_forwards"] for answer in answers)
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    assert counts["treespec_completion_tokens_total"] == tokens
    assert counts["treespec_prompt_tokens_total"] == (
        sum(answer["usage"]["prompt_tokens"] for answer in answers)
    )
    assert counts["treespec_draft_tokens_total"] == drafted
    assert counts["treespec_drafts_total"] == forwards
    by_position = [value for name, value in counts.items() if "per_pos_total{" in name]
    assert sum(by_position) == counts["treespec_accepted_tokens_total"]
    assert counts["treespec_time_to_first_token_seconds_count"] == 3
    assert counts["treespec_answer_seconds_sum"] > 0


def test_a_sum_that_is_large_still_grows(server):
    server.complete(prompt=PROMPT, max_tokens=5)
    text = server.client.get("/metrics").text
    (value,) = re.findall(r"^treespec_answer_seconds_sum (.+)$", text, re.MULTILINE)
    assert len(value.replace(".", "").lstrip("0")) > 8  # digits: a stream shows six unless told


CURL = re.compile(r"curl (?:-N )?localhost:8080/v1/completions[\s\\\\]+-d '([^']*)'")


def test_curl_commands_of_pages_and_help_are_answered(folder, server):
    pages = [(ROOT / "docs/service.md").read_text(), (SOURCE / "README.md").read_text()]
    bodies = [CURL.findall(text) for text in (*pages, run(folder / "build/cpp_service", "--help"))]
    assert [len(found) for found in bodies] == [2, 1, 1]
    as_curl = {"Content-Type": "application/x-www-form-urlencoded"}
    long = json.dumps({"prompt": [5] * 1900, "max_tokens": 1, "user": "x" * 9000})
    for body in (*itertools.chain(*bodies), long):
        answer = server.client.post("/v1/completions", content=body, headers=as_curl)
        assert answer.status_code == 200, answer.text
        if json.loads(body).get("stream"):
            assert answer.text.endswith("data: [DONE]\n\n")
        else:
            assert answer.json()["choices"][0]["finish_reason"] in ("stop", "length")


def failure(folder, *options, **where):
    with launch(folder, *options, **where) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    return out + err


def test_what_cannot_be_served_is_said_before_it_is_served(folder, server, tmp_path):
    assert "fir" in failure(folder, "--builder", "fir")
    assert "trie" in failure(folder, "--builder", "trie")  # a model gives no trie
    assert "--slots" in failure(folder, "--slots", "0")
    assert "--connections" in failure(folder, "--slots", "8", "--connections", "9")
    assert "treespec.json" in failure(folder, "--drafter", str(tmp_path))
    assert "--nodes must be below 256" in failure(folder, "--nodes", "256")
    assert "model" in failure(folder, model="nowhere")
    port = httpx.URL(server.url).port
    assert f":{port}" in failure(folder, port=port)


def test_a_missing_tokenizer_is_said_with_the_command_that_makes_it(folder, tmp_path):
    for name in ("treespec.json", "model.onnx", "model.onnx.data"):
        (tmp_path / name).symlink_to(folder / "demo" / name)
    message = failure(folder, model=tmp_path)
    assert f"convert_tokenizer {tmp_path} -o {tmp_path}" in message
    assert "--utf8_replace_mode disable" in message


def test_help_teaches_by_example(folder):
    text = run(folder / "build/cpp_service", "--help")
    assert "cpp_service demo" in text
    assert "convert_tokenizer" in text
    options = re.findall(r"^\s*(--[a-z-]+)", text, re.MULTILINE)
    page = (ROOT / "docs/service.md").read_text()
    assert [name for name in options if name != "--help" and f"`{name}`" not in page] == []
