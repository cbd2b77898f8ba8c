# SPDX-License-Identifier: Apache-2.0
"""`treespec bench`: settings against plain decoding, the reliability table, the report."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from decoder_models import draft_model, table_pair, target_model
from selector_cases import random_selector
from typer.testing import CliRunner, Result

import treespec
from treespec import SamplingParams, TokenTree
from treespec.benchmarking import Agreement, Comparison, Setting, compare
from treespec.benchmarking.near_ties import common_length, is_near_tie
from treespec.cli import bench as command
from treespec.cli import build_app
from treespec.cli.bench_report import Provenance, write_report
from treespec.decoder import SpeculativeDecoder
from treespec.generation import RoundRecord
from treespec.identity import identity_of
from treespec.profile import Profile, TargetSeconds, profile_path
from treespec.reliability import Reliability, trials_of, wilson_interval

PROMPTS = [[5, 6, 7], [3, 9, 4, 4], [8]]


@pytest.fixture
def models() -> SpeculativeDecoder:
    return treespec.load(target_model("llama"), draft_model("llama"), builder="chain")


def ran(
    models: SpeculativeDecoder, settings: list[Setting], repetitions: int = 1, **params: Any
) -> Comparison:
    params = {"max_new_tokens": 12, "ignore_eos": True, **params}
    return compare(models, settings, PROMPTS, SamplingParams(**params), repetitions=repetitions)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("opt_tree", ("opt_tree", None, "auto", {})),
        ("opt_tree:16", ("opt_tree", 16, "auto", {})),
        ("opt_tree:auto:greedy", ("opt_tree", None, "greedy", {})),
        ("dyspec:32:traversal", ("dyspec", 32, "traversal", {})),
        ("kary::greedy,expansion=3,2,1", ("kary", None, "greedy", {"expansion": [3, 2, 1]})),
        (
            "opt_tree:8,threshold=0.2,max_depth=3",
            ("opt_tree", 8, "auto", {"threshold": 0.2, "max_depth": 3}),
        ),
    ],
)
def test_a_setting_is_one_word(text: str, expected: tuple[Any, ...]) -> None:
    made = command.parse_setting(text)
    assert made.name == text
    assert (made.builder, made.node_budget, made.verifier, made.options) == expected


@pytest.mark.parametrize("text", ["", ":8", "opt_tree:x", "opt_tree:8:greedy:1", "opt_tree,8"])
def test_what_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="--compare"):
        command.parse_setting(text)


def test_a_setting_that_cannot_run_is_named_before_any_work(models: SpeculativeDecoder) -> None:
    walked: list[Any] = []
    with pytest.raises(ValueError, match=r"bench: setting 'mine': .*must be one of"):
        compare(
            models, [Setting("mine", "opt_tre")], PROMPTS, SamplingParams(), progress=walked.append
        )
    assert not walked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": []}, "settings must have names that differ"),
        ({"settings": [Setting("a"), Setting("a", "chain")]}, "settings must have names"),
        ({"settings": [Setting("plain")]}, "settings must have names"),
        ({"prompts": []}, "prompts must be a list"),
        ({"prompts": "text"}, "prompts must be a list"),
        ({"repetitions": 0}, "repetitions must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(
    models: SpeculativeDecoder, change: dict[str, Any], message: str
) -> None:
    arguments = {"settings": [Setting("a")], "prompts": PROMPTS, **change}
    with pytest.raises(ValueError, match=f"bench: {message}"):
        compare(models, params=SamplingParams(), **arguments)


def test_plain_decoding_has_nothing_to_compare() -> None:
    plain = treespec.load(target_model("llama"), None)
    with pytest.raises(ValueError, match="bench: models must have a drafter"):
        ran(plain, [Setting("a")])


def test_a_selector_is_an_option_of_its_setting(models: SpeculativeDecoder, tmp_path: Path) -> None:
    random_selector().save(tmp_path / "mine")
    setting = command.parse_setting(f"delayed,selector={tmp_path / 'mine'}")
    assert setting.options == {} and setting.selector == str(tmp_path / "mine")
    outcome = ran(models, [setting], temperature=0.9).outcomes[1]
    assert outcome.verifier == random_selector().config.verifier
    assert outcome.stats.accepted > 0


def flat_profile(identity: dict[str, str]) -> Profile:
    """Of a machine where more rows cost next to nothing."""
    return Profile(
        target=(TargetSeconds(64, 1, {1: 0.01, 16: 0.0101}),),
        draft_call={},
        drafts_by_level=True,
        drafted_round=0.0001,
        plain_round=0.0001,
        acceptance={"deterministic": [[0.6, 0.2, 0.1]]},
        identity=identity,
    )


def test_sizes_of_auto_come_from_a_profile_of_this_very_pair(
    models: SpeculativeDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREESPEC_CACHE", str(tmp_path))
    settings = [command.parse_setting(text) for text in ("opt_tree:4", "opt_tree:auto")]
    with pytest.raises(ValueError, match="there is none: run treespec tune --profile"):
        command._with_profile(settings, models, None)
    assert command._with_profile(settings[:1], models, None) == settings[:1]

    identity = identity_of(models.target, models.drafter)
    flat_profile(identity).save(profile_path(identity))
    fixed, chosen = command._with_profile(settings, models, None)
    assert fixed.profile is None and chosen.profile is not None
    comparison = ran(models, [fixed, chosen])
    assert comparison.outcomes[1].stats.rounds_by_size.keys() <= {0, 1, 2, 3, 4}
    assert comparison.outcomes[2].agreement == Agreement(equal=3)
    assert max(comparison.outcomes[2].stats.rounds_by_size) > 4

    other = tmp_path / "other.json"
    flat_profile({**identity, "device": "another machine"}).save(other)
    with pytest.raises(ValueError, match="--profile must be of this pair: device is"):
        command._with_profile(settings, models, other)


# --- comparing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_counts_are_those_of_the_decoder_alone(
    models: SpeculativeDecoder, temperature: float
) -> None:
    setting = Setting("mine", "kary", options={"expansion": [2, 2]})
    comparison = ran(models, [setting], 2, temperature=temperature, seed=3)
    plain, outcome = comparison.outcomes
    decoder = treespec.load(
        target_model("llama"), draft_model("llama"), builder="kary",
        builder_options={"expansion": [2, 2]},
    )  # fmt: skip
    results = [
        decoder.generate(
            prompt, max_new_tokens=12, ignore_eos=True, temperature=temperature, seed=3 + place
        )
        for place, prompt in enumerate(PROMPTS)
    ]
    for name in ("rounds", "tokens", "drafted_nodes", "accepted", "shapes", "offered_by_rank"):
        total = treespec.Stats.total(result.stats for result in results)
        assert getattr(outcome.stats, name) == getattr(total, name), name
    assert outcome.agreement == Agreement(equal=3)
    assert outcome.node_budget == 6
    assert outcome.verifier == ("greedy" if temperature == 0 else "target_only")
    assert plain.builder is None and plain.agreement is None
    assert plain.speedup == (1.0, 1.0, 1.0)
    assert plain.speedup_of_rounds == pytest.approx(1.0)
    assert plain.stats.rounds_by_kind == {"plain": plain.stats.rounds, "chain": 0, "tree": 0}
    assert outcome.typical_round is not None and len(outcome.typical_round.tree) > 1


def test_speed_is_the_median_over_plains(
    models: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock of our own: plain decoding takes 4 s a text, the setting 1, 2 and 9."""
    taken = {False: iter([4.0] * 9), True: iter([1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 9.0, 9.0, 9.0])}

    def measure(self: Any, work: Any) -> Any:
        result = work()
        self.wall.append(next(taken[result.stats.drafted_nodes > 0]))
        return result

    monkeypatch.setattr("treespec.benchmarking.timing.Samples.measure", measure)
    plain, outcome = ran(models, [Setting("a", "chain", 3)], repetitions=3).outcomes
    assert plain.token_seconds == [4 / 12] * 3
    assert outcome.token_seconds == [2 / 12] * 3
    assert outcome.tokens_per_second == pytest.approx(6.0)
    assert outcome.speedup == pytest.approx((2.0, 2.0, 2.0))


def test_every_prompt_goes_through_all_settings_in_turn(
    models: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, Any]] = []
    generate = SpeculativeDecoder.generate

    def watched(self: SpeculativeDecoder, prompt: Any, **options: Any) -> Any:
        order.append((self.builder_name if self.drafter else "plain", prompt))
        return generate(self, prompt, **options)

    monkeypatch.setattr(SpeculativeDecoder, "generate", watched)
    ran(models, [Setting("a", "chain"), Setting("b", "kary")], repetitions=2)
    one_pass = [(name, prompt) for prompt in PROMPTS for name in ("plain", "chain", "kary")]
    assert order == one_pass * 3


def test_settings_with_draws_of_their_own_have_no_texts_to_compare(
    models: SpeculativeDecoder,
) -> None:
    drawn = Setting("drawn", "dyspec", 8)
    assert ran(models, [drawn], temperature=0.9).outcomes[1].agreement is None
    assert ran(models, [drawn], temperature=0.9).outcomes[1].reliability is None
    assert ran(models, [drawn], temperature=0.0).outcomes[1].agreement == Agreement(equal=3)


@pytest.mark.parametrize(
    ("change", "is_tie", "expected"),
    [
        (lambda text: [*text[:-1], (text[-1] + 1) % 50], None, Agreement(different=3)),
        (lambda text: [*text[:-1], (text[-1] + 1) % 50], True, Agreement(near_ties=3)),
        (lambda text: text[:-1], True, Agreement(different=3)),
    ],
    ids=["another token", "another token at a tie", "cut"],
)
def test_texts_that_differ_are_found(
    models: SpeculativeDecoder,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[list[int]], list[int]],
    is_tie: bool | None,
    expected: Agreement,
) -> None:
    """Of a decoder that ends its texts wrong."""
    generate = SpeculativeDecoder.generate

    def wrong(self: SpeculativeDecoder, prompt: Any, **options: Any) -> Any:
        result = generate(self, prompt, **options)
        if self.drafter is None:
            return result
        return dataclasses.replace(result, token_ids=change(result.token_ids))

    monkeypatch.setattr(SpeculativeDecoder, "generate", wrong)
    if is_tie is not None:
        monkeypatch.setattr("treespec.benchmarking.comparison.is_near_tie", lambda *_: is_tie)
    comparison = ran(models, [Setting("a", "chain")])
    assert comparison.outcomes[1].agreement == expected
    if expected.different:
        with pytest.raises(ValueError, match="bench: texts of a must be plain decoding's"):
            command._refuse_different_texts(comparison)
    else:
        command._refuse_different_texts(comparison)


# --- near-ties ------------------------------------------------------------------------------------


class OneRow:
    """A target that answers every prompt with one row."""

    def __init__(self, row: Any) -> None:
        self.row = row

    def open(self, rows: int) -> None: ...

    def prefill(self, states: Any, token_ids: Any, needs: Any) -> tuple[list[Any], list[Any]]:
        return [self.row], [None]

    def close(self, state: Any) -> None: ...


def near_tie(row: Any, choices: tuple[int, int], **params: Any) -> bool:
    decoder: Any = type("Decoder", (), {"target": OneRow(row)})()
    prompt = np.array([1, 2], dtype=np.int32)
    return is_near_tie(decoder, prompt, [3], choices, SamplingParams(**params))


def test_a_near_tie_is_what_rounding_decides() -> None:
    row = torch.tensor([0.0, 5.0, 5.0 - 5e-4, 4.9, 1.0])
    assert near_tie(row, (1, 2), temperature=0)
    assert near_tie(row, (2, 1), temperature=0)
    assert not near_tie(row, (1, 3), temperature=0)
    assert not near_tie(row.double(), (1, 2), temperature=0)
    assert near_tie(row.bfloat16(), (1, 3), temperature=0)
    assert near_tie(row.numpy(), (1, 2), temperature=0)


def test_a_near_tie_of_a_draw_is_one_of_the_race_not_of_the_row() -> None:
    """Equal logits are no tie once noise has told the tokens apart."""
    row = torch.zeros(5)
    ties = {
        (a, b): near_tie(row, (a, b), temperature=1.0, seed=4) for a in range(5) for b in range(a)
    }
    assert not any(ties.values())


def test_penalties_move_a_near_tie() -> None:
    row = torch.tensor([0.0, 0.0, 0.0, 8.0, 4.0])  # token 3 was said before
    assert not near_tie(row, (3, 4), temperature=0)
    assert near_tie(row, (3, 4), temperature=0, repetition_penalty=2.0)


def test_common_length() -> None:
    assert common_length([1, 2, 3], [1, 2, 4]) == 2
    assert common_length([1, 2], [1, 2, 4]) == 2
    assert common_length([], [1]) == 0


# --- reliability ----------------------------------------------------------------------------------


def record_of(parent: list[int], own: list[float], path: list[int]) -> RoundRecord:
    trie = treespec.Trie([one - 1 for one in parent[1:]], list(range(len(own))), np.log(own))
    tree = treespec.build_tree("trie", trie, node_budget=len(own))
    assert tree.parent.tolist() == parent
    verdict: Any = type("Verdict", (), {"accepted_nodes": np.array(path, dtype=np.int32)})()
    return RoundRecord(tree, verdict, 0, 0)


def test_trials_are_the_children_of_the_accepted_path() -> None:
    record = record_of([-1, 0, 0, 1, 2, 2], [0.5, 0.4, 0.5, 0.6, 0.3], [2])
    trials = trials_of(record)
    assert trials.probability == pytest.approx([0.5, 0.4, 0.6, 0.3])
    assert trials.accepted.tolist() == [False, True, False, False]


def test_the_table_counts_by_bins() -> None:
    table = Reliability(num_bins=4)
    for path in ([2, 4], [1], []):
        table.count(record_of([-1, 0, 0, 1, 2, 2], [0.55, 0.4, 0.55, 0.6, 0.3], path))
    # Looked at: 0.55 and 0.4 thrice; 0.6 and 0.3 below node 2, and 0.55 below node 1, once.
    low, high = table.bins()
    assert (low.low, low.high, low.trials, low.accepted) == (0.25, 0.5, 4, 1)
    assert (high.low, high.high, high.trials, high.accepted) == (0.5, 0.75, 5, 2)
    assert low.predicted == pytest.approx((3 * 0.4 + 0.3) / 4)
    assert table.trials == 9
    wrong = 4 * abs(low.predicted - 1 / 4) + 5 * abs(high.predicted - 2 / 5)
    assert table.calibration_error == pytest.approx(wrong / 9)
    assert Reliability().calibration_error == 0.0
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        Reliability(0)


def test_certain_guesses_are_in_the_last_bin() -> None:
    table = Reliability(10)
    record = RoundRecord(
        TokenTree([0, 1], parent=[-1, 0]), record_of([-1, 0], [0.5], [1]).verdict, 0, 0
    )
    table.count(record)  # a tree without scores has log-probability 0
    (only,) = table.bins()
    assert (only.low, only.high, only.predicted, only.realised) == (0.9, 1.0, 1.0, 1.0)


def test_an_exact_drafter_is_calibrated() -> None:
    """The table pair's target as its own drafter: what it promises at temperature 1, it keeps."""
    target, drafter = table_pair(noise=0.0)
    decoder = SpeculativeDecoder(target, drafter, builder="opt_tree", node_budget=12)
    table = Reliability()
    stats = []
    for seed in range(40):
        result = decoder.generate(
            [1, 2], max_new_tokens=60, temperature=1.0, seed=seed, on_round=table.count
        )
        stats.append(result.stats)
    total = treespec.Stats.total(stats)
    assert table.trials > 3000
    assert table.calibration_error < 0.02
    for row in table.bins():
        low, high = wilson_interval(row.accepted, row.trials, z=4.0)
        assert low <= row.predicted <= high
    assert total.accepted == pytest.approx(total.predicted_accepted, rel=0.08)


def test_wilsons_interval_is_the_textbooks() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)


# --- the command ----------------------------------------------------------------------------------


class Page(HTMLParser):
    """Elements of a page, its ids and what it refers to; a tag that is left open is an error."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.headings: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href", "action", "data"):
                self.references.append(value or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), list(arguments))


def provenance_of(name: str) -> Provenance:
    pair = {"target": name, "drafter": name, "device": "cpu"}
    return Provenance(f"treespec bench --target {name}", pair, {"processor": "any"}, "2026-01-01")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, str, dict[str, Any]]:
    """A run on the demo pair: what it printed, its page and its figures."""
    folder = tmp_path_factory.mktemp("bench")
    prompts = folder / "prompts.txt"
    prompts.write_text("import os\n\ndef main():\n", encoding="utf-8")
    files = ["--report", str(folder / "out.html"), "--json", str(folder / "out.json")]
    settings = ["-c", "opt_tree:6", "-c", "chain:2", "-c", "rollouts:4"]
    result = call(
        "bench", "--prompts", str(prompts), "-n", "10", "-r", "1", "-t", "0.7", *settings, *files
    )
    assert result.exit_code == 0, result.output
    page = (folder / "out.html").read_text(encoding="utf-8")
    return result, page, json.loads((folder / "out.json").read_text(encoding="utf-8"))


def test_bench_prints_a_row_per_setting(written: tuple[Result, str, dict[str, Any]]) -> None:
    lines = written[0].stdout.splitlines()
    for name in ("plain", "opt_tree:6", "chain:2", "rollouts:4"):
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
    assert "2 same" in written[0].stdout and "own draws" in written[0].stdout


def test_bench_writes_every_figure(written: tuple[Result, str, dict[str, Any]]) -> None:
    facts = written[2]
    plain, tree, *_ = facts["outcomes"]
    assert facts["num_prompts"] == 2 and facts["machine"]["cores"] >= 1
    assert plain["speedup"]["ratio"] == 1.0
    assert tree["agreement"] == {"equal": 2, "near_ties": 0, "different": 0}
    assert tree["stats"]["wasted_nodes"] == (
        tree["stats"]["drafted_nodes"] - tree["stats"]["accepted"]
    )
    assert sum(row["trials"] for row in tree["reliability"]["bins"]) > 0
    assert tree["speedup"]["low"] <= tree["speedup"]["ratio"] <= tree["speedup"]["high"]


def test_the_report_is_one_whole_page(written: tuple[Result, str, dict[str, Any]]) -> None:
    page = Page(written[1])
    assert page.headings == [
        "Speed", "Acceptance by depth and by rank", "Sizes of trees, and waste",
        "Promised and kept", "Time by step", "A round", "All numbers", "What was run",
    ]  # fmt: skip
    assert page.tags.count("svg") == 6
    assert len(set(page.ids)) == len(page.ids)
    used = {*page.references, *re.findall(r"url\((.*?)\)", written[1])}
    assert used and {one.removeprefix("#") for one in used} <= set(page.ids)
    assert not {"script", "link", "img", "iframe", "image"} & set(page.tags)
    assert "@import" not in written[1]


def test_the_report_escapes_what_it_shows(models: SpeculativeDecoder, tmp_path: Path) -> None:
    comparison = ran(models, [Setting("<b>&$x$", "chain", 2)])
    provenance = provenance_of("<u>")
    write_report(tmp_path / "out.html", comparison, provenance, lambda token: f"'<s{token}>'")
    page = Page((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert not {"b", "i", "u"} & set(page.tags)
    assert not [tag for tag in page.tags if re.fullmatch(r"s\d+", tag)]


def test_a_report_of_drawn_trees_alone_says_what_it_lacks(
    models: SpeculativeDecoder, tmp_path: Path
) -> None:
    comparison = ran(models, [Setting("drawn", "dyspec", 6)], temperature=0.9)
    write_report(tmp_path / "out.html", comparison, provenance_of("demo"), str)
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert Page(text).tags.count("svg") == 5
    assert "no setting made deterministic trees" in text


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_the_extra_the_report_is_refused_before_any_work(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(treespec, "load", lambda *_, **__: pytest.fail("loaded"), raising=False)
    result = call("bench", "--report", str(tmp_path / "out.html"))
    assert result.exit_code == 1
    assert "pip install 'treespec[plot]'" in result.stderr and package in result.stderr


def test_bench_refuses_a_missing_folder_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(treespec, "load", lambda *_, **__: pytest.fail("loaded"), raising=False)
    for option in ("--report", "--json"):
        result = call("bench", option, str(tmp_path / "no" / "out"))
        assert result.exit_code == 2
        assert option in result.stderr
