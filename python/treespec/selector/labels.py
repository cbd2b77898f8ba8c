# SPDX-License-Identifier: Apache-2.0
"""Training data of selectors: what is known at a root, and what every action would give there.

Texts are the target's, written in rounds of one tree, and roots are where rounds began: the places
where selectors choose. The paper (arXiv 2602.16994, section 6) takes one every 16 tokens; but most
rounds begin where the last one was rejected, where less is accepted than at a token like any other.
Labels are expectations over the verifier's coins, for every drawn superset on its own, so that a
choice made on some of them can be judged by the others.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec.decoder import SpeculativeDecoder
from treespec.drafts.autoregressive import AutoregressiveDrafter
from treespec.selector.actions import ACTIONS, Action
from treespec.selector.features import STATES, RootView, Setting, as_float32
from treespec.selector.supersets import Pair, Root, draft_settings, evaluate
from treespec.tuning.pair import Progress, as_decoder, prompt_list

_FORMAT, _VERSION = "treespec.selector_labels", 1
ROUNDS = 8  # from root to root: some 16 tokens
WRITTEN_WITH = Action(4, 0, 4)


@dataclass(frozen=True)
class Labels:
    """Roots with their features and labels, R of them; A actions, S supersets.

    Attributes
    ----------
    settings
        Of the texts.
    setting, prompt
        ``[R]``: which setting, and which prompt the text began with.
    scalars
        ``[R, 9]`` float32, the numbers of `SCALARS`.
    states
        ``[R, H]`` float16 by name of `STATES`.
    rows
        ``[R, A]`` float16: rows of the target's forward, the root counted and equal draws merged.
    tokens
        By verifier ``[R, S, A]`` float16: expected tokens per round; NaN where not evaluated.
    metadata
        Anything JSON can hold: models, prompts, seed.
    """

    settings: tuple[Setting, ...]
    setting: npt.NDArray[np.int32]
    prompt: npt.NDArray[np.int32]
    scalars: npt.NDArray[np.float32]
    states: dict[str, npt.NDArray[np.float16]]
    rows: npt.NDArray[np.float16]
    tokens: dict[str, npt.NDArray[np.float16]]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.setting)

    def mean_tokens(self, verifier: str) -> npt.NDArray[np.float64]:
        """``[R, A]`` over the supersets."""
        self.check(verifier)
        return self.tokens[verifier].astype(np.float64).mean(axis=1)

    def check(self, verifier: str) -> None:
        """ValueError for a verifier without labels; names those that have some."""
        if verifier not in self.tokens:
            known = ", ".join(self.tokens)
            raise ValueError(f"labels: verifier must be one of {known}, got {verifier!r}")

    def select(self, kept: npt.NDArray[Any]) -> Labels:
        """Some of the roots, by mask or by number."""
        return replace(
            self,
            setting=self.setting[kept],
            prompt=self.prompt[kept],
            scalars=self.scalars[kept],
            states={name: rows[kept] for name, rows in self.states.items()},
            rows=self.rows[kept],
            tokens={name: rows[kept] for name, rows in self.tokens.items()},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a compressed ``.npz``, whole or not at all."""
        path = Path(path)
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "settings": [list(setting) for setting in self.settings],
            "actions": [list(action) for action in ACTIONS],
            "metadata": dict(self.metadata),
        }
        arrays: dict[str, Any] = {
            "setting": self.setting,
            "prompt": self.prompt,
            "scalars": self.scalars,
            "rows": self.rows,
            **{f"states.{name}": rows for name, rows in self.states.items()},
            **{f"tokens.{name}": rows for name, rows in self.tokens.items()},
        }
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.npz")
        try:
            np.savez_compressed(unfinished, header=json.dumps(header), **arrays)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Labels:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            For a file that holds no labels, or labels of other actions.
        OSError
            If there is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                header = json.loads(str(arrays["header"]))
                content = {name: arrays[name] for name in arrays.files if name != "header"}
        except (ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{_FORMAT}: {path} must hold labels: {error}") from None
        if (header.get("format"), header.get("version")) != (_FORMAT, _VERSION):
            raise ValueError(
                f"{_FORMAT}: {path} must be of version {_VERSION}, got {header.get('version')!r}"
            )
        if header["actions"] != [list(action) for action in ACTIONS]:
            raise ValueError(f"{_FORMAT}: {path} has labels of other actions than this treespec")

        def group(prefix: str) -> dict[str, Any]:
            return {n.removeprefix(prefix): a for n, a in content.items() if n.startswith(prefix)}

        return Labels(
            tuple(Setting(*setting) for setting in header["settings"]),
            content["setting"],
            content["prompt"],
            content["scalars"],
            group("states."),
            content["rows"],
            group("tokens."),
            header["metadata"],
        )


def collect_labels(
    models: Any,
    prompts: Sequence[Any],
    settings: Sequence[Setting],
    *,
    verifiers: Sequence[str],
    root_only: Collection[str] = (),
    new_tokens: int = 128,
    supersets: int = 4,
    seed: int = 0,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress[Any] = iter,
) -> Labels:
    """Let the pair continue prompts, and label the root of every eighth round.

    Parameters
    ----------
    models
        A `SpeculativeDecoder` with an autoregressive drafter, whose models are used.
    prompts
        Token ids; every setting continues all of them.
    verifiers, root_only
        As `supersets.evaluate` takes them; the first writes the texts.
    supersets
        Drawn per root; the paper has 4.
    progress
        Walks over the texts.

    Raises
    ------
    ValueError
        For no prompts, or counts below 1.
    NotImplementedError
        If the drafter is not autoregressive.
    """
    decoder = as_decoder(models)
    if not isinstance(decoder.drafter, AutoregressiveDrafter):
        raise NotImplementedError(
            "collect_labels: the drafter must be an autoregressive model, got "
            f"{type(decoder.drafter).__name__}"
        )
    if new_tokens < 1 or supersets < 1:
        raise ValueError(
            "collect_labels: new_tokens and supersets must be at least 1, "
            f"got {new_tokens}, {supersets}"
        )
    prompts = [np.asarray(p).tolist() for p in prompt_list("collect_labels", prompts)]
    pair, gathered = Pair(decoder.target, decoder.drafter), _Gathered(tuple(settings))
    writer = SpeculativeDecoder(
        decoder.target,
        decoder.drafter,
        builder="delayed",
        builder_options=WRITTEN_WITH.options,
        verifier=verifiers[0],
        node_budget=WRITTEN_WITH.nodes,
    )
    texts = [(place, prompt) for place in range(len(settings)) for prompt in range(len(prompts))]
    for place, prompt in progress(texts):
        rng, sampling = np.random.default_rng([seed, place, prompt]), settings[place].params
        text, roots = _write(writer, prompts[prompt], settings[place], new_tokens, seed, prompt)
        places = roots[rng.integers(min(ROUNDS, len(roots))) :: ROUNDS]
        for root in pair.roots(text, places, supersets, sampling, rng):
            gathered.add(place, prompt, text, root, verifiers, root_only)
    return gathered.labels({**(metadata or {}), "seed": seed, "prompts": len(prompts)})


def _write(
    decoder: SpeculativeDecoder,
    prompt: list[int],
    setting: Setting,
    new_tokens: int,
    seed: int,
    sequence_id: int,
) -> tuple[list[int], list[int]]:
    """A text with its prompt, and where in it the roots of its rounds lie."""
    text, roots = list(prompt), []
    for piece in decoder.stream(
        prompt,
        max_new_tokens=new_tokens,
        temperature=setting.temperature,
        top_p=setting.top_p,
        seed=seed,
        sequence_id=sequence_id,
        ignore_eos=True,
    ):
        text += piece.token_ids
        roots.append(len(text) - 1)
    # Nothing began after the last token, but the one text of a single token has no other root.
    return text, roots[:-1] or roots


class _Gathered:
    """Columns of `Labels` while they grow."""

    def __init__(self, settings: tuple[Setting, ...]) -> None:
        self.settings = settings
        self.columns: dict[str, list[Any]] = {}

    def add(
        self,
        place: int,
        prompt: int,
        text: Sequence[int],
        root: Root,
        verifiers: Sequence[str],
        root_only: Collection[str],
    ) -> None:
        sampling = self.settings[place].params
        seen = [evaluate(one, verifiers, root_only=root_only) for one in root.supersets]
        found = {
            "setting": np.int32(place),
            "prompt": np.int32(prompt),
            "scalars": RootView.of(
                root.target_logits,
                sampling.row_params(),
                np.array(text[: root.position], dtype=np.int32),
                root.position,
                root.rows,
                draft_settings(sampling),
            ).scalars(),
            "rows": np.mean([one.rows for one in seen], axis=0).astype(np.float16),
        }
        states = (root.target_state, root.rows.before_state, root.rows.root_state)
        for name, state in zip(STATES, states, strict=True):
            found[f"states.{name}"] = as_float32(state).astype(np.float16)
        for verifier in verifiers:
            own = [one.tokens[verifier] for one in seen]
            found[f"tokens.{verifier}"] = np.array(own, dtype=np.float16)
        for name, value in found.items():
            self.columns.setdefault(name, []).append(value)

    def labels(self, metadata: Mapping[str, Any]) -> Labels:
        """All that was added."""
        arrays = {name: np.array(column) for name, column in self.columns.items()}

        def group(prefix: str) -> dict[str, Any]:
            return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}

        return Labels(
            self.settings,
            arrays["setting"],
            arrays["prompt"],
            arrays["scalars"],
            group("states."),
            arrays["rows"],
            group("tokens."),
            metadata,
        )
