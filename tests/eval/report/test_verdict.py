"""The verdict is right for better, worse, tied, slower and incomparable students, with the figures of the rows."""

import pytest

from eval.report.verdict import verdict_text
from tests.eval.report.example import row


def report_of(report, *students, reference="pocket", **more):
    report["rows"] = [row("teacher, 50 steps", "teacher", 50, 400.0, 2.0), *students]
    for entry in report["rows"]:
        entry |= {"frechet_ratio": entry["frechet_distance"] / 2, "speedup": 400 / entry["latency_ms"]}
    report["rows"][0]["frechet_interval"] = [1.8, 2.2]
    return report | {"reference": reference} | more


def student(distance, interval, latency=20.0, name="a, 1 step", method="dmd"):
    return row(name, method, 1, latency, distance, frechet_ratio_interval=interval)


@pytest.mark.parametrize(
    ("distance", "interval", "words"),
    [
        (1.0, [0.4, 0.6], "its quality is significantly better than the teacher's: its Frechet distance is 0.500× the "
         "teacher's (95% interval 0.400–0.600)"),
        (4.0, [1.5, 2.5], "its quality is significantly worse than the teacher's: its Frechet distance is 2.00× the "
         "teacher's (95% interval 1.50–2.50)"),
        (2.2, [0.9, 1.3], "its quality does not differ significantly from the teacher's: its Frechet distance is 1.10× "
         "the teacher's (95% interval 0.900–1.30 tie)"),
        (2.2, None, "and its Frechet distance is 1.10× the teacher's (no interval is known, so this is not tested)."),
    ],
)  # fmt: skip
def test_first_sentence_names_student_speed_and_quality(report, distance, interval, words):
    text = verdict_text(report_of(report, student(distance, interval)))
    assert text.startswith(
        "a, 1 step is 20.0× as fast as the teacher with 50 steps (20.0 instead of 400 ms per image),"
    )
    assert words in text


def test_slower_student_and_a_teacher_with_few_steps_that_is_better(report):
    few = row("teacher, DPM-Solver++, 2 steps", "teacher", 2, 30.0, 3.0)
    text = verdict_text(report_of(report, few, student(5.0, [2.0, 3.0], latency=800.0)))
    assert "a, 1 step is 0.500× as fast as the teacher" in text
    assert (
        "However, teacher, DPM-Solver++, 2 steps is at least as fast and has a smaller distance: 30.0 ms, 3.00" in text
    )


def test_fastest_student_is_named_if_another_is_best(report):
    best, fast = student(2.0, [0.9, 1.1], latency=40.0), student(6.0, [2.0, 4.0], 10.0, "b, 1 step", "scm")
    text = verdict_text(report_of(report, best, fast))
    assert text.startswith("a, 1 step is 10.0× as fast")
    assert "The fastest is b, 1 step, 40.0× as fast; its quality is significantly worse" in text


def test_without_a_reference_the_distance_is_similarity_to_the_teacher(report):
    text = verdict_text(report_of(report, student(4.0, [1.5, 2.5]), reference=None))
    assert "its similarity to the teacher's samples is significantly worse than the teacher's" in text


def test_without_students_and_with_a_baseline_of_distance_zero(report):
    alone = report_of(report)
    assert verdict_text(alone).startswith("teacher, 50 steps takes 400 ms per image; its Frechet distance")
    zero = report_of(report, student(4.0, None))
    for entry in zero["rows"]:
        entry["frechet_ratio"] = None
    assert "its quality cannot be compared, because the baseline's Frechet distance is 0." in verdict_text(zero)


def test_baseline_can_be_another_run(report):
    other = student(3.0, None, 30.0, "b, 1 step", "scm")
    changed = report_of(report, student(2.0, [0.5, 0.8]), other, baseline="b, 1 step")
    assert "as fast as b, 1 step (20.0 instead of 30.0 ms" in verdict_text(changed)
    assert "significantly better than the baseline's" in verdict_text(changed)
