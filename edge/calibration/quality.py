"""The limits for INT8 accuracy that ``build``, ``eval``, ``tune`` and the trial of ``ship`` apply.

=========  =========================================================  ====================================
level      condition                                                  consequence
=========  =========================================================  ====================================
collapse   logit SQNR below 6 dB, or agreement with FP32 below 80 %   exit code 1, unless the profile has
           on at least 50 images                                    ``quality: {collapse: allow}``
weak       logit SQNR below 10 dB, or agreement below 90 % on at      a note with the worst layers and the
           least 50 images                                          ``edge tune`` command
good       otherwise                                                  nothing
=========  =========================================================  ====================================

The user's own limits (``quality:`` in the profile, ``edge eval --min-...``) apply in addition; missing one is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from edge.config import QualityConfig
from edge.errors import QualityError

COLLAPSE_SQNR_DB, COLLAPSE_AGREEMENT = 6.0, 80.0
WEAK_SQNR_DB, WEAK_AGREEMENT = 10.0, 90.0
# A share of fewer images is too uncertain: 8 of 10 has a 95 % interval from 49 to 94 %.
MIN_PICTURES = 50

Level = Literal["good", "weak", "collapse"]


class MeasuredAccuracy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Accuracy of a quantized network on ``n`` images; shares in percent with their 95 % intervals.

    ``sqnr_db`` None means that the logits equal those of FP32. ``top1_drop`` is FP32's top-1 minus this one, in
    points. Unmeasured values are absent.
    """

    n: int
    sqnr_db: float | None
    agreement: float
    agreement_interval: tuple[float, float] | None = None
    top1: float | None = None
    top1_interval: tuple[float, float] | None = None
    top1_drop: float | None = None
    top1_drop_interval: tuple[float, float] | None = None


class QualityVerdict(msgspec.Struct, frozen=True):
    """The level by the table of limits, and the figures below a limit (empty for good)."""

    level: Level
    reasons: list[str]


def judge(measured: MeasuredAccuracy) -> QualityVerdict:
    """Return the level of ``measured`` by the table of limits."""
    for level, sqnr_limit, share_limit in (
        ("collapse", COLLAPSE_SQNR_DB, COLLAPSE_AGREEMENT),
        ("weak", WEAK_SQNR_DB, WEAK_AGREEMENT),
    ):
        reasons = []
        if measured.sqnr_db is not None and measured.sqnr_db < sqnr_limit:
            reasons.append(f"logit SQNR is {measured.sqnr_db:.1f} dB (limit {sqnr_limit:g} dB)")
        if measured.n >= MIN_PICTURES and measured.agreement < share_limit:
            share = _share(measured.agreement, measured.agreement_interval)
            reasons.append(f"agreement with FP32 is {share} on {measured.n} images (limit {share_limit:g} %)")
        if reasons:
            return QualityVerdict(level, reasons)  # type: ignore[arg-type]
    return QualityVerdict("good", [])


def check(
    measured: MeasuredAccuracy,
    quality: QualityConfig,
    *,
    hint: str,
    layers: Callable[[], Sequence[str]] = list,
    judged: bool = True,
) -> list[str]:
    """Check ``measured`` against the table of limits and the limits in ``quality``.

    Args:
        measured: the measured accuracy.
        quality: the profile's section, overridden by options of the command.
        hint: the command that improves the accuracy.
        layers: returns the layers with the largest loss, worst first; called only if the accuracy is not good.
        judged: apply the table of limits, too; False for a network that is not INT8.

    Returns:
        Notes for the user; empty if everything is good.

    Raises:
        QualityError: a limit of the user is missed, or the accuracy has collapsed and the profile does not allow it.
    """
    missed = list(_missed(measured, quality))
    if missed:
        raise QualityError("; ".join(missed), hint=hint)
    verdict = judge(measured)
    if verdict.level == "good" or not judged:
        return []
    what = "INT8 accuracy has collapsed" if verdict.level == "collapse" else "INT8 accuracy is weak"
    text = f"{what}: {'; '.join(verdict.reasons)}"
    if worst := layers():
        text += f"; layers with the largest loss: {', '.join(worst)}"
    if verdict.level == "collapse" and quality.collapse == "error":
        raise QualityError(text, hint=f"{hint}; or set quality: {{collapse: allow}} in the profile to accept it")
    return [f"{text}; to improve it: {hint}"]


def _missed(measured: MeasuredAccuracy, quality: QualityConfig) -> list[str]:
    """Return one sentence for each missed limit of the user, with figure, interval and limit."""
    found = []
    if quality.min_sqnr is not None and measured.sqnr_db is not None and measured.sqnr_db < quality.min_sqnr:
        found.append(f"logit SQNR is {measured.sqnr_db:.2f} dB, below the limit of {quality.min_sqnr:g} dB")
    if quality.min_agreement is not None and measured.agreement < quality.min_agreement:
        share = _share(measured.agreement, measured.agreement_interval)
        found.append(f"agreement with FP32 is {share}, below the limit of {quality.min_agreement:g} %")
    if quality.min_top1 is not None and measured.top1 is not None and measured.top1 < quality.min_top1:
        share = _share(measured.top1, measured.top1_interval)
        found.append(f"top-1 is {share}, below the limit of {quality.min_top1:g} %")
    if quality.max_drop is not None and measured.top1_drop is not None and measured.top1_drop > quality.max_drop:
        points = _share(measured.top1_drop, measured.top1_drop_interval, unit="points")
        found.append(f"top-1 is {points} below FP32's, more than the limit of {quality.max_drop:g} points")
    return found


def _share(value: float, interval: tuple[float, float] | None, *, unit: str = "%") -> str:
    between = f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else ""
    return f"{value:.1f} {unit}{between}"
