"""State the conclusions of a sweep in sentences: which algorithm, and how many images."""

from __future__ import annotations

import msgspec

from edge.stats import Interval
from edge.tuning.sweep_comparison import LEVEL, ConfigurationPair, ConfigurationRow, Findings, Mark
from edge.tuning.sweep_record import Record

MARKS: dict[Mark, str] = {"best": "*", "same": "=", "top-1 alike": "~", "different": ""}
# Pairs of algorithms that are listed individually.
_PAIRS = 3


class Conclusion(msgspec.Struct, frozen=True):
    """A question, its short answer (a sentence without its full stop), and the reasons."""

    question: str
    short: str
    detail: list[str]


def conclusions(record: Record) -> list[Conclusion]:
    """Conclude which algorithm and how many images are best; empty if nothing was scored."""
    if record.findings is None:
        return []
    return [_which_algorithm(record.findings), _how_many(record.findings)]


def _which_algorithm(found: Findings) -> Conclusion:
    question = "Which algorithm?"
    most = max(group.pictures for group in found.groups)
    there = sorted((g for g in found.groups if g.pictures == most), key=lambda g: -g.sqnr_db.mean.value)
    first = there[0]
    lead = f"with {most} images {first.algorithm} has the highest SQNR, {interval(first.sqnr_db.mean)} dB"
    if len(there) == 1:
        return Conclusion(question, f"Only {first.algorithm} was tried", [lead, _against_fp32(found)])
    against = {pair.b: pair for pair in found.pairs if pair.a == first.algorithm}
    alike = [name for name, pair in against.items() if not _differs(pair)]
    behind = [pair for pair in against.values() if _differs(pair)]
    detail = [lead]
    if alike:
        phrase = "is" if len(alike) == 1 else "are"
        detail.append(f"{_listed(alike)} {phrase} not significantly different from it")
    detail += [f"{pair.b} is {_below(pair.against.sqnr_db)} below it" for pair in behind]
    apart = [f"{pair.a} from {pair.b}" for pair in found.pairs if pair.against.top1_p_holm < LEVEL]
    if not apart:
        detail.append("in top-1, no two of them differ significantly")
    else:
        more = f"; and {len(apart) - _PAIRS} more pairs" if len(apart) > _PAIRS else ""
        detail.append(f"in top-1, these differ significantly: {'; '.join(apart[:_PAIRS])}{more}")
    detail.append(_against_fp32(found))
    if not behind:
        short = f"No significant difference: none of {len(there)} is worse than the best in SQNR"
    elif not alike:
        short = f"{first.algorithm}: {_smallest(behind):.2f} dB above the next"
    elif len(behind) <= len(alike):
        short = f"Any but {_listed([pair.b for pair in behind], word='or')}"
    else:
        short = _listed([first.algorithm, *alike], word="or")
    return Conclusion(question, short, detail)


def _how_many(found: Findings) -> Conclusion:
    question = "How many images?"
    fewest, most = min(g.pictures for g in found.groups), max(g.pictures for g in found.groups)
    few = [g for g in found.groups if g.pictures == fewest and g.sqnr_gain_db is not None]
    if fewest == most or not few:
        return Conclusion(question, "Only one number was tried", [f"{most} images"])
    worse = [g for g in few if g.sqnr_gain_db is not None and g.sqnr_gain_db.high < 0]
    better = [g for g in few if g.sqnr_gain_db is not None and g.sqnr_gain_db.low > 0]
    detail = [f"{fewest} images instead of {most} change the SQNR by, in dB:"]
    detail += [f"{g.algorithm} {_signed(g.sqnr_gain_db)}" for g in few]
    spreads = [g.sqnr_db.highest - g.sqnr_db.lowest for g in few]
    if max(g.seeds for g in few) > 1:
        draws = max(g.seeds for g in few)
        detail.append(f"the {draws} draws of {fewest} differ by {min(spreads):.2f} to {max(spreads):.2f} dB")
    if worse:
        short = f"More than {fewest} help {_listed([g.algorithm for g in worse])}"
        short += f"; too many hurt {_listed([g.algorithm for g in better])}" if better else ""
    elif better:
        short = f"{fewest} are enough; more make {_listed([g.algorithm for g in better])} worse"
    else:
        short = f"{fewest} are enough: more change nothing significantly"
    return Conclusion(question, short, detail)


def _against_fp32(found: Findings) -> str:
    lost = [row for row in found.rows if row.against_fp32.top1_p_holm < LEVEL]
    alone = f"FP32 has {interval(found.fp32_top1)} % top-1"
    if not lost:
        return (
            f"{alone}; none of {len(found.rows)} tables differs significantly from it in top-1 "
            f"(with {found.n} images, a difference below {found.visible_points:.1f} points cannot be significant)"
        )
    worst = min(lost, key=lambda row: row.against_fp32.top1.value)
    return (
        f"{alone}; {len(lost)} of {len(found.rows)} tables differ from it in top-1, the most {_named(worst)}: "
        f"{_signed(worst.against_fp32.top1)} points"
    )


def interval(value: Interval, digits: int = 2) -> str:
    """Format an interval as ``18.24 [17.78, 18.66]``."""
    return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def _signed(value: Interval | None) -> str:
    if value is None:
        return "–"
    return f"{value.value:+.2f} [{value.low:+.2f}, {value.high:+.2f}]".replace("-0.00", "+0.00")


def _below(value: Interval | None) -> str:
    return "–" if value is None else f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}] dB"


def _differs(pair: ConfigurationPair) -> bool:
    return pair.against.sqnr_p_holm is not None and pair.against.sqnr_p_holm < LEVEL


def _smallest(pairs: list[ConfigurationPair]) -> float:
    return min(pair.against.sqnr_db.value for pair in pairs if pair.against.sqnr_db is not None)


def _named(row: ConfigurationRow) -> str:
    item = row.configuration
    return f"{item.algorithm} with {item.pictures} images" + (f", seed {item.seed}" if item.seed else "")


def _listed(words: list[str], word: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {word} {words[-1]}"
