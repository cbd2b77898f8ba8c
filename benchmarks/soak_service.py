# SPDX-License-Identifier: Apache-2.0
"""Lets clients of the C++ service come and go at random, and looks for what it got wrong.

Every answer that is waited for must be the text that the same request got on the quiet service;
every other one is hung up on after a random part. In the end the counters must be those of what was
sent, open files as many as after the first quarter, and memory where it was at half time.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

PROMPTS = (
    "class Stack:",
    "import os\nimport sys\n\n\ndef main():",
    "def parse_header(line):\n    if not line:",
    '"""ß 漢字 👩‍👩‍👧"""\n',
)
MAX_GROWTH = 8 << 20  # bytes of resident memory, in the second half
NUM_PARTS = 4  # memory is looked at after each
IDLE_SECONDS = 6  # the service gives idle connections up after five


def make_requests(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Requests of every kind that is answered."""
    return [
        {
            "prompt": rng.choice(PROMPTS),
            "max_tokens": rng.choice([1, 8, 40, 120]),
            "temperature": rng.choice([0, 0.7, 1.2]),
            "top_p": rng.choice([1, 0.9]),
            "seed": rng.randrange(2**32),
            "stop": rng.choice([None, "\n\n", ["self", "return"]]),
            "ignore_eos": rng.random() < 0.3,
        }
        for _ in range(count)
    ]


class Process:
    """The service, and what the system knows of it."""

    def __init__(self, program: Path, model: Path, options: list[str]) -> None:
        command = [str(program), str(model), "--port", "0", *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("listening on "):
            raise SystemExit(f"{program}: exit status {self._process.wait()}")
        self.url = line.split()[-1]
        self._folder = Path("/proc", str(self._process.pid))

    def memory(self) -> int:
        """Resident bytes."""
        pages = int((self._folder / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def open_files(self) -> int:
        return len(list((self._folder / "fd").iterdir()))

    def stop(self) -> int:
        """Ask it to end; its exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(120)


class Clients:
    """What is sent, what came of it, and what was wrong."""

    def __init__(self, url: str, expected: list[tuple[dict[str, Any], str]]) -> None:
        self._url, self._expected = url, expected
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.mistakes: list[str] = []

    def note(self, what: str, mistake: str = "") -> None:
        with self._lock:
            self.counts[what] += 1
            if mistake:
                self.mistakes.append(mistake)

    def run(self, seed: int, end: float) -> None:
        """One client: a request after the other, until the end."""
        rng = random.Random(seed)
        while time.monotonic() < end:
            # A client of its own now and then: connections that live long, and short.
            with httpx.Client(base_url=self._url, timeout=120) as client:
                for _ in range(rng.randrange(1, 20)):
                    self._one(rng, client)
                    if time.monotonic() >= end:
                        break

    def _one(self, rng: random.Random, client: httpx.Client) -> None:
        request, text = rng.choice(self._expected)
        kind = rng.choice(["whole", "stream", "stream", "leave", "leave", "impatient", "bad"])
        try:
            getattr(self, f"_{kind}")(rng, client, request, text)
        except httpx.TimeoutException:
            self.note("timeouts", f"no answer in time to {request}")
        except httpx.TransportError as error:
            self.note("broken", f"{kind} broke: {error!r}")

    def _whole(self, rng: Any, client: httpx.Client, request: dict[str, Any], text: str) -> None:
        answer = client.post("/v1/completions", json=request)
        if answer.status_code == 429:
            self.note("refused")
        elif answer.status_code != 200:
            self.note("failed", f"{answer.status_code} for {request}: {answer.text}")
        else:
            self._check(request, text, answer.json()["choices"][0]["text"])

    def _stream(self, rng: Any, client: httpx.Client, request: dict[str, Any], text: str) -> None:
        got, done = "", False
        with client.stream("POST", "/v1/completions", json={**request, "stream": True}) as answer:
            if answer.status_code == 429:
                self.note("refused")
                return
            for line in filter(None, answer.iter_lines()):
                data = line.removeprefix("data: ")
                done = data == "[DONE]"
                if not done:
                    got += json.loads(data)["choices"][0]["text"]
        self._check(request, text, got if done else f"{got} (and no end)")

    def _leave(self, rng: random.Random, client: httpx.Client, request: Any, text: str) -> None:
        """Hang up after a few events; what came must be a beginning of the text."""
        got, events = "", rng.randrange(6)
        with client.stream("POST", "/v1/completions", json={**request, "stream": True}) as answer:
            if answer.status_code == 429:
                self.note("refused")
                return
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    got += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                    events -= 1
                if events < 0:
                    break
        mistake = "" if text.startswith(got) else f"{request}: {got!r} does not begin {text!r}"
        self.note("left", mistake)

    def _impatient(self, rng: random.Random, client: Any, request: Any, text: str) -> None:
        """Hang up before there is an answer, in line or in a slot."""
        patience = rng.choice([0.01, 0.05, 0.2])
        with (
            httpx.Client(base_url=self._url, timeout=patience) as other,
            contextlib.suppress(httpx.TimeoutException),
        ):
            other.post("/v1/completions", json={**request, "max_tokens": 400})
        self.note("left")

    def _bad(self, rng: random.Random, client: httpx.Client, request: Any, text: str) -> None:
        body = rng.choice([b"{", b'{"prompt": 1}', b'{"prompt": "a", "top_p": 7}', b"\xff" * 100])
        answer = client.post("/v1/completions", content=body)
        mistake = "" if answer.status_code == 400 else f"{answer.status_code} for {body!r}"
        self.note("bad", mistake)

    def _check(self, request: dict[str, Any], want: str, got: str) -> None:
        self.note("answered", "" if got == want else f"{request}: {got!r}, not {want!r}")


def read_metrics(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.removeprefix("treespec_"): float(value) for name, value in samples}


def requests_by_status(metrics: dict[str, float]) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, value in metrics.items():
        if match := re.match(r'requests_total\{status="(\d+)"', name):
            found[match[1]] += int(value)
    return found


def settled(url: str) -> dict[str, float]:
    """The metrics once nothing runs or waits, and no client is connected."""
    time.sleep(IDLE_SECONDS)
    end = time.monotonic() + 60
    while True:
        metrics = read_metrics(url)
        if not metrics["requests_running"] and not metrics["requests_waiting"]:
            return metrics
        if time.monotonic() > end:
            raise SystemExit("slots are not given back")
        time.sleep(0.1)


def check_counters(before: Counter[str], metrics: dict[str, float], counts: Counter[str]) -> str:
    """What the service counted, against what was sent: a sentence when they differ."""
    now = requests_by_status(metrics)
    now.subtract(before)
    # Whoever leaves may have been answered in full, refused, or never read.
    left = counts["left"]
    sound = (
        not now["500"]
        and not now["503"]
        and now["400"] == counts["bad"]
        and counts["answered"] <= now["200"] <= counts["answered"] + left
        and counts["refused"] <= now["429"] <= counts["refused"] + left
        and now["499"] <= left
    )
    return "" if sound else f"statuses are {dict(now)} for {dict(counts)}"


def answer_all(url: str, requests: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """The requests with their texts, one after the other."""
    with httpx.Client(base_url=url, timeout=300) as client:
        answers = [client.post("/v1/completions", json=one).json() for one in requests]
    texts = [answer["choices"][0]["text"] for answer in answers]
    return list(zip(requests, texts, strict=True))


def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    service = Process(arguments.program, arguments.model, arguments.options)
    memory, files = [], []
    try:
        requests = make_requests(random.Random(arguments.seed), arguments.requests)
        clients = Clients(service.url, answer_all(service.url, requests))
        before = requests_by_status(read_metrics(service.url))
        seeds = itertools.count(arguments.seed)
        for _ in range(NUM_PARTS):
            end = time.monotonic() + arguments.seconds / NUM_PARTS
            with ThreadPoolExecutor(arguments.clients) as pool:
                for seed in itertools.islice(seeds, arguments.clients):
                    pool.submit(clients.run, seed, end)
            metrics = settled(service.url)
            time.sleep(1)  # for the connection that asked
            memory.append(service.memory())
            files.append(service.open_files())
    finally:
        status = service.stop()
    mistakes = list(clients.mistakes)
    if sentence := check_counters(before, metrics, clients.counts):
        mistakes.append(sentence)
    # Caches and allocators fill up for a while; a leak goes on.
    if (growth := memory[-1] - memory[NUM_PARTS // 2 - 1]) > arguments.max_growth:
        mistakes.append(f"memory grew by {growth} bytes in the second half")
    if files[-1] > files[0]:
        mistakes.append(f"{files[-1] - files[0]} more files are open")
    if status != 0:
        mistakes.append(f"exit status {status}")
    return {
        "seconds": arguments.seconds,
        "clients": dict(clients.counts),
        "service": dict(requests_by_status(metrics) - before),
        "memory_bytes": memory,
        "open_files": files,
        "exit_status": status,
        "mistakes": mistakes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", type=Path, required=True, help="the built cpp_service")
    parser.add_argument("--model", type=Path, required=True, help="the exported folder")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8, help="at once")
    parser.add_argument("--requests", type=int, default=40, help="different ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--max-growth", type=int, default=MAX_GROWTH, help="bytes, in the second half"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "options", nargs="*", help="options of the service, after --: -- --slots 4 --queue 2"
    )
    result = soak(parser.parse_args())
    print(json.dumps(result, indent=None if "--json" in sys.argv else 1, ensure_ascii=False))
    raise SystemExit(1 if result["mistakes"] else 0)


if __name__ == "__main__":
    main()
