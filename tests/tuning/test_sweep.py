from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.artifacts import store
from edge.calibration import workflow
from edge.config import profiles
from edge.errors import ArtifactError, DataError, ModelError, StoreError, UsageError
from edge.events import Note, Progress
from edge.media.picture_sources import open_pictures
from edge.quantization import calibration_table
from edge.tuning import conclusions, sweep_record, sweep_tables
from edge.tuning.sweep_comparison import Answers
from edge.tuning.sweep_record import Record

Bench = Callable[..., Any]


# what to try


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["minmax"], {"minmax": {}}),
        (["percentile:99.5"], {"percentile:99.5": {"percentile": 99.5}}),
        (["percentile:percentile=99.5"], {"percentile:percentile=99.5": {"percentile": 99.5}}),
        (["percentile", "percentile:50"], {"percentile": {"percentile": 99.99}, "percentile:50": {"percentile": 50.0}}),
        (
            ["legacy:quantile=0.9:cutoff=0.5"],
            {"legacy:quantile=0.9:cutoff=0.5": {"quantile": 0.9, "cutoff": 0.5}},
        ),
        (["entropy2:0"], {"entropy2:0": {"margin": 0.0}}),
    ],
)
def test_algorithms_are_read(words: list[str], expected: dict[str, dict[str, float]]) -> None:
    assert {item.label: item.parameters for item in sweep_tables.candidates(words)} == expected


def test_no_word_means_every_algorithm() -> None:
    names = [item.label for item in sweep_tables.candidates([])]
    assert {"minmax", "percentile", "mse", "entropy", "entropy2", "legacy"} <= set(names)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["entropie2"], "did you mean 'entropy2'"),
        (["percentile:lots"], "'lots' is not a number"),
        (["percentile:"], "'' is not a number"),
        (["percentile:101"], "must be 1 to 100"),
        (["percentile:share=3"], "no such parameter"),
        (["minmax:3"], "'3' needs the name of its parameter"),
        (["legacy:0.9"], "'0.9' needs the name of its parameter"),
        (["percentile", "percentile:99.99"], "twice"),
        (["minmax", "minmax"], "twice"),
        ([""], "there is no algorithm ''"),
    ],
)
def test_algorithms_that_are_wrong(words: list[str], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        sweep_tables.candidates(words)


@pytest.mark.parametrize(
    ("words", "total", "expected"),
    [
        ([], 1000, [50, 100, 200, 400, 1000]),
        ([], 400, [50, 100, 200, 400]),
        ([], 60, [50, 60]),
        ([], 7, [7]),
        (["5", "all", "2", "5"], 9, [2, 5, 9]),
        (["9"], 9, [9]),
    ],
)
def test_numbers_of_pictures_are_read(words: list[str], total: int, expected: list[int]) -> None:
    assert sweep_tables.sizes(words, total) == expected


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["10"], "10 images requested, only 9 available"),
        (["0"], "'0' is not"),
        (["-3"], "'-3'"),
        (["many"], "'many'"),
    ],
)
def test_numbers_of_pictures_that_are_wrong(words: list[str], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        sweep_tables.sizes(words, 9)


# the flow


def test_a_sweep_tries_everything_that_it_is_asked_for(bench: Bench) -> None:
    heard: list[object] = []
    found = bench()(listen=heard.append)
    assert found.status == "complete"
    assert {(c.algorithm, c.pictures, c.seed) for c in found.configurations} == {
        (name, size, seed)
        for name in ("minmax", "percentile:90")
        for size, seed in ((4, 1), (4, 2), (12, None))
    }  # fmt: skip
    assert found.findings is not None
    assert len(found.findings.rows) == 6
    assert {group.seeds for group in found.findings.groups} == {1, 2}
    assert [(pair.pictures) for pair in found.findings.pairs] == [12]
    assert found.exact is not None
    assert found.exact.truth == [index % 10 for index in range(20)]
    assert set(found.answers) == {c.table for c in found.configurations}
    assert {event.stage for event in heard if isinstance(event, Progress)} >= {"hash", "count", "prepare", "score"}
    assert found.seconds.keys() == {"count", "tables", "score", "total"}


def test_the_tables_are_those_of_edge_calibrate(bench: Bench) -> None:
    small = bench(labelled=4)
    found = small(algorithms=("minmax", "entropy2", "percentile:99"), sizes=(3, 12), seeds=1)
    whole = {c.algorithm: c.table for c in found.configurations if c.pictures == 12}
    for label, (name, parameters) in {
        "minmax": ("minmax", {}), "entropy2": ("entropy2", {}), "percentile:99": ("percentile", {"percentile": 99.0}),
    }.items():  # fmt: skip
        settings = msgspec.structs.replace(small.profile.calibration, algorithm=name, parameters=parameters)
        chosen = msgspec.structs.replace(small.profile, calibration=settings)
        made = workflow.calibrate(chosen, small.pictures, cache=small.cache, threads=1)
        assert made is not None
        assert store.canonical_digest(calibration_table.parse(made.table.read_bytes()).bits) == whole[label]


def test_all_pictures_alone_take_the_statistics_that_calibrate_kept(bench: Bench) -> None:
    small = bench()
    first = small(sizes=(12,), seeds=3)
    kept = {path: path.stat().st_mtime_ns for path in small.cache.rglob("*.npz")}
    assert len(kept) == 1
    heard: list[object] = []
    again = small(sizes=(12,), seeds=3, listen=heard.append)
    assert {path: path.stat().st_mtime_ns for path in small.cache.rglob("*.npz")} == kept
    assert not [event for event in heard if isinstance(event, Progress) and event.stage == "count"]
    assert again.findings == first.findings


def test_equal_tables_are_scored_once(bench: Bench) -> None:
    heard: list[object] = []
    found = bench()(algorithms=("minmax", "percentile:100"), sizes=(12,), listen=heard.append)
    assert len({c.table for c in found.configurations}) == 1
    assert [event.total for event in heard if isinstance(event, Progress) and event.stage == "score"] == [1, 1]
    assert found.findings is not None
    assert [row.mark for row in found.findings.rows] == ["best", "same"]


def test_a_sweep_is_the_same_every_time(bench: Bench) -> None:
    small = bench()
    a, b = small(threads=1), small(threads=3)
    assert a.findings == b.findings
    assert a.answers == b.answers


def test_labels_of_another_map_are_said(bench: Bench) -> None:
    small = bench()
    shifted = [picture.labelled(10) for picture in small.labelled]
    found = small._replace(labelled=shifted)(sizes=(12,))
    assert len(found.warnings) == 1
    assert "above" in found.warnings[0]


# the file


def test_what_was_scored_is_not_scored_again(bench: Bench, tmp_path: Path) -> None:
    small = bench()
    first = small(output=tmp_path / "out" / "sweep.json")
    heard: list[object] = []
    again = small(output=tmp_path / "out" / "sweep.json", listen=heard.append)
    assert [event.text for event in heard if isinstance(event, Note)] == ["6 of 6 tables were scored before"]
    assert again.findings == first.findings
    more = small(algorithms=("minmax", "mse"), output=tmp_path / "out" / "sweep.json", listen=heard.append)
    assert heard[-1] == Progress("score", 3, 3, unit="tables")
    assert more.status == "complete"
    assert sweep_record.load(tmp_path / "out" / "sweep.json") == more


@pytest.mark.parametrize("after", [1, 3])
def test_a_stopped_sweep_keeps_what_is_through_and_goes_on(bench: Bench, tmp_path: Path, after: int) -> None:
    small, output = bench(), tmp_path / "sweep.json"
    through = 0

    def listen(event: object) -> None:
        nonlocal through
        if isinstance(event, Progress) and event.stage == "score":
            through = event.done

    stopped = small(output=output, listen=listen, should_stop=lambda: through >= after)
    assert stopped.status == "interrupted"
    assert after <= len(stopped.answers) < 6
    assert stopped.findings is not None
    assert {row.configuration.table for row in stopped.findings.rows} == set(stopped.answers)
    assert len(stopped.configurations) == 6
    assert sweep_record.load(output) == stopped
    # The whole set comes first.
    assert {c.pictures for c in stopped.configurations if c.table in list(stopped.answers)[:1]} == {12}
    assert small(output=output).findings == small().findings


def test_a_sweep_that_is_stopped_at_once_has_found_nothing(bench: Bench, tmp_path: Path) -> None:
    small, output = bench(), tmp_path / "sweep.json"
    assert small(output=output, should_stop=lambda: True) is None
    assert not output.exists()


@pytest.mark.parametrize("stage", ["count", "tables", "prepare"])
def test_a_sweep_that_is_stopped_before_the_first_score(bench: Bench, tmp_path: Path, stage: str) -> None:
    small, output = bench(), tmp_path / "sweep.json"
    there = False

    def listen(event: object) -> None:
        nonlocal there
        there = there or (isinstance(event, Progress) and event.stage == stage)

    found = small(output=output, listen=listen, should_stop=lambda: there)
    assert there
    assert (found.status, found.findings, found.answers) == ("interrupted", None, {})
    assert sweep_record.load(output) == found
    assert conclusions.conclusions(found) == []
    there = False
    complete = small(output=output)
    assert complete.status == "complete"
    # Stopped before there was anything new: the file stays as it is.
    small(output=output, listen=listen, should_stop=lambda: there)
    assert sweep_record.load(output) == complete


def test_a_file_about_something_else_is_not_written_over(bench: Bench, tmp_path: Path) -> None:
    small, output = bench(), tmp_path / "sweep.json"
    small(output=output, sizes=(12,))
    other = small._replace(labelled=small.labelled[:10])
    with pytest.raises(UsageError, match="labelled"):
        other(output=output, sizes=(12,))
    forced = other(output=output, sizes=(12,), force=True)
    assert forced.findings is not None
    assert forced.findings.n == 10


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda data: data[:100], "not a record of edge sweep"),
        (lambda data: b"", "not a record of edge sweep"),
        (lambda data: b"[1]", "not a record of edge sweep"),
        (lambda data: b'{"kind": "calibration table"}', "not a record of edge sweep"),
        (lambda data: b"\xff\xfe", "not a record of edge sweep"),
        (lambda data: data.replace(b'"format":1', b'"format":2'), "format 2; this edge reads format 1"),
        (lambda data: data.replace(b'"format":1,', b""), "format None"),
        (lambda data: data.replace(b'"seconds"', b'"minutes"'), "seconds"),
        (lambda data: _with(data, lambda tree: tree["exact"]["truth"].pop()), "the answers of a table"),
        (
            lambda data: _with(data, lambda tree: next(iter(tree["answers"].values()))["energy"].pop()),
            "the answers of a table",
        ),
    ],
    ids=["cut", "empty", "list", "other kind", "not text", "newer", "no format", "other field", "truth", "energy"],
)
def test_a_damaged_file_is_refused(bench: Bench, tmp_path: Path, change: Callable, what: str) -> None:
    small, output = bench(), tmp_path / "sweep.json"
    small(output=output, sizes=(12,), algorithms=("minmax",))
    output.write_bytes(change(output.read_bytes()))
    before = output.read_bytes()
    with pytest.raises(ArtifactError, match=what):
        sweep_record.load(output)
    with pytest.raises(ArtifactError, match=what):
        small(output=output, sizes=(12,), algorithms=("minmax",))
    assert output.read_bytes() == before


def _with(data: bytes, change: Callable) -> bytes:
    tree = json.loads(data)
    change(tree)
    return json.dumps(tree).encode()


def test_a_folder_that_cannot_be_written_is_known_before_the_work(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    heard: list[object] = []
    with pytest.raises(StoreError):
        bench()(output=tmp_path / "file" / "sweep.json", listen=heard.append)
    assert not [event for event in heard if isinstance(event, Progress) and event.stage == "count"]


def test_a_missing_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        sweep_record.load(tmp_path / "none.json")


def test_the_summary_leaves_out_each_picture(bench: Bench) -> None:
    shown = sweep_record.sweep_summary(bench()(sizes=(12,)))
    assert "answers" not in shown
    assert "exact" not in shown
    assert shown["findings"]["n"] == 20
    json.dumps(shown, allow_nan=False)


# what cannot be swept


def test_pictures_in_both_sets_are_refused(bench: Bench, tmp_path: Path) -> None:
    small = bench()
    copy = tmp_path / "scored" / "007.jpg"
    copy.write_bytes((tmp_path / "calibration" / "002.jpg").read_bytes())
    labelled = open_pictures(tmp_path / "scored", labels=tmp_path / "scored" / "labels.csv")
    with pytest.raises(DataError, match=r"1 of the 20 .* \(007\.jpg is 002\.jpg\)"):
        small._replace(labelled=list(labelled))()


def test_pictures_without_a_label_are_refused(bench: Bench) -> None:
    small = bench()
    labelled = [small.labelled[0].labelled(None), *small.labelled[1:]]
    with pytest.raises(DataError, match=r"1 of 20 .* no label \(000\.jpg"):
        small._replace(labelled=labelled)()


def test_nothing_to_score_with_is_refused(bench: Bench) -> None:
    with pytest.raises(DataError, match="no images to score with"):
        bench()._replace(labelled=[])()


@pytest.mark.parametrize(
    ("more", "what"), [({"seeds": 0}, "0 seeds"), ({"sizes": (13,)}, "13 images are requested, but there are only 12")]
)
def test_settings_that_ask_for_what_there_is_not(bench: Bench, more: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        bench()(**more)


def test_a_profile_that_does_not_fit_its_model_is_refused(bench: Bench) -> None:
    small = bench()
    wrong = msgspec.structs.replace(small.profile, input=profiles.InputConfig(height=64, width=64))
    with pytest.raises(ModelError, match="height 32"):
        small._replace(profile=wrong)()


# the three questions


@pytest.fixture(scope="module")
def blank() -> Callable[..., Answers]:
    """Answers to 100 pictures, the first ``wrong`` of them wrong, with noise of ``energy`` each."""

    def make(energy: float, wrong: int = 10) -> Answers:
        return Answers(
            predicted=[1 if i < wrong else 0 for i in range(100)], top5="1" * 100,
            energy=[energy * (1 + 0.01 * (i % 7)) for i in range(100)], quantized=4, weighted=4,
        )  # fmt: skip

    return make


def told(bench: Bench, said: dict[tuple[str, int, int | None], Answers]) -> dict[str, conclusions.Conclusion]:
    """What is read from a sweep with these answers."""
    from edge.tuning import sweep_comparison

    real: Record = bench()(sizes=(12,))
    exact = Answers(predicted=[1] * 10 + [0] * 90, top5="1" * 100, energy=[100.0 + i % 3 for i in range(100)])
    known = [
        sweep_comparison.Configuration(algorithm=name, pictures=size, seed=seed, table=f"{name} {size} {seed}")
        for name, size, seed in said
    ]
    answers = {item.table: found for item, found in zip(known, said.values(), strict=True)}
    findings = sweep_comparison.findings(known, exact, answers, [0] * 100)
    return {
        answer.question: answer for answer in conclusions.conclusions(msgspec.structs.replace(real, findings=findings))
    }


def test_algorithms_without_a_significant_difference_are_named_so(bench: Bench, blank: Callable) -> None:
    answers = told(bench, {("a", 400, None): blank(1.0), ("b", 400, None): blank(1.0)})
    assert answers["Which algorithm?"].short == "No significant difference: none of 2 is worse than the best in SQNR"
    assert answers["How many images?"].short == "Only one number was tried"


def test_the_best_algorithm_is_named_with_its_lead(bench: Bench, blank: Callable) -> None:
    answers = told(
        bench, {("a", 400, None): blank(2.0), ("b", 400, None): blank(1.0), ("c", 400, None): blank(4.0, 60)}
    )
    which = answers["Which algorithm?"]
    assert which.short == "b: 3.01 dB above the next"
    assert "in top-1, these differ significantly: b from c; a from c" in which.detail
    assert any("1 of 3 tables differ" in line and "-50.00" in line for line in which.detail)


def test_the_worst_algorithm_is_named_when_the_rest_is_alike(bench: Bench, blank: Callable) -> None:
    said = {("a", 9, None): blank(1.0), ("b", 9, None): blank(1.0), ("c", 9, None): blank(4.0)}
    assert told(bench, said)["Which algorithm?"].short == "Any but c"


def test_one_algorithm_is_no_comparison(bench: Bench, blank: Callable) -> None:
    assert told(bench, {("a", 9, None): blank(1.0)})["Which algorithm?"].short == "Only a was tried"


@pytest.mark.parametrize(
    ("few", "short"),
    [
        (1.0, "50 are enough: more change nothing significantly"),
        (2.0, "More than 50 help a"),
        (0.5, "50 are enough; more make a worse"),
    ],
)
def test_the_number_of_pictures(bench: Bench, blank: Callable, few: float, short: str) -> None:
    said = {("a", 50, 1): blank(few), ("a", 50, 2): blank(few), ("a", 400, None): blank(1.0)}
    answers = told(bench, said)
    assert answers["How many images?"].short == short
    assert answers["How many images?"].detail[-1] == "the 2 draws of 50 differ by 0.00 to 0.00 dB"
