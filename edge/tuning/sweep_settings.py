"""What a sweep is to try, read from what the user wrote."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edge.errors import UsageError
from edge.quantization import Algorithm, algorithms

SIZES = (50, 100, 200, 400)


class Candidate(msgspec.Struct, frozen=True):
    """An algorithm with its parameters; ``label`` is how the user would write it."""

    label: str
    algorithm: Algorithm
    parameters: dict[str, float]


class SweepSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to try: ``sizes`` are numbers of pictures, ``seeds`` how many subsets of each are drawn."""

    candidates: list[Candidate]
    sizes: list[int]
    seeds: int = 3
    batches: tuple[int, ...] = (1, 8)
    threads: int | None = None


def candidates(words: Sequence[str]) -> list[Candidate]:
    """Read words as :func:`edge.quantization.algorithms.read` does; no word means every algorithm.

    Raises:
        UsageError: no such algorithm or parameter, not a number, or the same one twice.
    """
    found: dict[tuple[str, tuple[tuple[str, float], ...]], Candidate] = {}
    for word in words or list(algorithms.REGISTRY):
        name, parameters = algorithms.read(word)
        chosen, complete = algorithms.find(name, parameters)
        same = (name, tuple(sorted(complete.items())))
        if same in found:
            raise UsageError(f"{word!r} is there twice", where="--algorithm")
        found[same] = Candidate(word.strip(), chosen, complete)
    return list(found.values())


def sizes(words: Sequence[str], total: int) -> list[int]:
    """Read numbers of pictures, ``all`` among them; no word means those of 50, 100, 200, 400 that there are, and all.

    Raises:
        UsageError: not a number above 0, or more than ``total``.
    """
    if not words:
        return sorted({*(size for size in SIZES if size < total), total})
    found = set()
    for word in words:
        if word.strip() != "all" and not (word.strip().isdecimal() and int(word) > 0):
            raise UsageError(f"{word!r} is not a number of pictures", where="--pictures", hint="--pictures 50,100,all")
        found.add(total if word.strip() == "all" else int(word))
    if max(found) > total:
        raise UsageError(
            f"{max(found)} pictures are asked for, and there are {total}", where="--pictures", hint="--pictures all"
        )
    return sorted(found)
