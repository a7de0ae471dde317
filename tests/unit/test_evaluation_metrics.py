"""AP and AR against pycocotools' COCOeval, against trackeval, and against cases counted by hand."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from generated_annotations import Generated, burst_from, compressed, generate
from reference_evaluators import VideoEval, burst_figures, coco_one_frame, trackeval_figures

from openvis_rt.errors import InputError
from openvis_rt.evaluation.annotation_files import annotations_from_ytvis
from openvis_rt.evaluation.burst import annotations_from_burst, entries_from_burst
from openvis_rt.evaluation.metrics import Evaluation, evaluate
from openvis_rt.evaluation.report import FIGURES
from openvis_rt.evaluation.results_files import predictions_from
from openvis_rt.evaluation.rules import BURST, COCO, YTVIS

EXACT = 1e-12  # sums of up to a thousand terms in another order
UNLIMITED = (1, 10, 10**6)  # TrackMAP's recall has no limit


def accumulated(data: Generated, rules, *, class_agnostic: bool = False):
    annotations = annotations_from_ytvis(data.annotations, "ytvis")
    run = Evaluation(annotations, class_agnostic=class_agnostic, rules=rules)
    run.add(predictions_from(data.results, annotations, class_agnostic=class_agnostic))
    return run.accumulated()


def official(figures: dict[str, float | None]) -> np.ndarray:
    """With the official code's -1 for what is absent."""
    return np.array([-1 if figures[name] is None else figures[name] for name in FIGURES])


VARIANTS = {
    "usual": {},
    "shuffled": {"shuffled": True},
    "many classes": {"categories": 40, "tracks": 12, "predictions": 30},
    "one class": {"categories": 1, "tracks": 8, "predictions": 40},
    "crowds": {"crowd": 0.6, "categories": 2, "predictions": 30},
    "hardly anything": {"tracks": 1, "predictions": 2, "missing": 0.7},
    "more than the limit": {"videos": 2, "categories": 1, "predictions": 260, "tracks": 20},
}


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(4))
def test_all_figures_are_those_of_cocoeval_over_videos(variant, seed, class_agnostic):
    data = generate(seed, **VARIANTS[variant])
    if not data.annotations["annotations"]:
        pytest.skip("this seed gives no track")
    reference = VideoEval(data, YTVIS, classes=not class_agnostic)
    figures = reference.run()
    found = accumulated(data, YTVIS, class_agnostic=class_agnostic)
    # bit for bit: the same whole numbers are divided and summed in the same order
    assert np.array_equal(found.precision, reference.eval["precision"][..., -1])
    assert np.array_equal(found.recall, reference.eval["recall"])
    annotations = annotations_from_ytvis(data.annotations, "ytvis")
    report = evaluate(annotations, data.results, class_agnostic=class_agnostic)
    assert np.array_equal(official(report.overall), figures)


@pytest.mark.parametrize("seed", range(6))
def test_one_frame_videos_are_images_to_cocoeval(seed):
    # without crowds, whose IoU is another one for images
    data = generate(seed, frames=(1, 1), missing=0.0, crowd=0.0, predictions=20)
    data.results = [entry for entry in data.results if entry["segmentations"][0]]
    reference = coco_one_frame(data)
    report = evaluate(annotations_from_ytvis(data.annotations, "ytvis"), data.results, rules=COCO)
    assert np.array_equal(official(report.overall), reference.stats)


@pytest.fixture(scope="module")
def trackeval():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it and OpenCV warn of while they are imported
        return pytest.importorskip("trackeval", reason="it comes with the extra [dev]")


@pytest.mark.usefixtures("trackeval")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(3))
def test_all_figures_are_those_of_trackeval(tmp_path, variant, seed):
    options = {k: v for k, v in VARIANTS[variant].items() if k != "shuffled"}  # its order: the file
    data = generate(100 + seed, **options)
    if not data.annotations["annotations"]:
        pytest.skip("this seed gives no track")
    thresholds = YTVIS.thresholds if seed else BURST.thresholds
    rules = replace(BURST, areas=YTVIS.areas, thresholds=thresholds, recall_limits=UNLIMITED)
    assert_close(accumulated(data, rules), trackeval_figures(data, tmp_path, rules), rules)


@pytest.mark.usefixtures("trackeval")
@pytest.mark.parametrize("seed", range(8))
def test_burst_figures_are_those_of_trackeval(tmp_path, seed):
    options = {"crowd": 0.0, "categories": 8, "tracks": 9, "predictions": 30, "frames": (2, 5)}
    truth, results = burst_from(generate(200 + seed, **options), seed)
    annotations = annotations_from_burst(truth)
    rules = replace(BURST, recall_limits=UNLIMITED)
    run = Evaluation(annotations, rules=rules)
    run.add(predictions_from(entries_from_burst(results, annotations), annotations))
    reference = burst_figures(truth, results, tmp_path, BURST)
    assert_close(run.accumulated(), reference, BURST)
    assert annotations.splits["common"] == {4, 13, 347}
    assert annotations.splits["uncommon"] == {5, 554}


def assert_close(found, reference, rules) -> None:
    """AP and AR at every threshold in every area range."""
    for index, (name, _, _) in enumerate(rules.areas):
        for at in range(len(rules.thresholds)):
            for kind, values in (
                ("AP", found.precision[at, :, :, index]),
                ("AR", found.recall[at, :, index, -1]),
            ):
                present = values[values > -1]
                mean = present.mean() if present.size else -1
                assert abs(mean - reference[f"{kind}_{name}"][at]) <= EXACT


def test_the_references_see_a_difference():
    data = generate(0)
    before = VideoEval(data, YTVIS).run()
    data.results = data.results[1:]
    assert not np.array_equal(VideoEval(data, YTVIS).run(), before)


# by hand


def box(left: int, right: int, *, height: int = 10, width: int = 100) -> dict:
    """Columns left..right-1 of a frame."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, left:right] = 1
    return compressed(mask)


def by_hand(tracks, predictions, *, frames: int = 2, **options):
    """A report of one video of 10x100 pixels; a track is (class, masks, crowd)."""
    names = [f"v/{i}.jpg" for i in range(frames)]
    data = {
        "videos": [{"id": 1, "height": 10, "width": 100, "file_names": names}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {
                "id": 1 + number,
                "video_id": 1,
                "category_id": category,
                "segmentations": masks,
                "iscrowd": crowd,
            }
            for number, (category, masks, crowd) in enumerate(tracks)
        ],
    }
    entries = [
        {"video_id": 1, "category_id": category, "segmentations": masks, "score": score}
        for category, masks, score in predictions
    ]
    return evaluate(annotations_from_ytvis(data, "ytvis"), entries, **options)


def test_iou_is_that_of_the_whole_video():
    # 10 x (20 + 0) shared; 10 x (30 + 10) in either: 0.5 counts at the threshold of 0.5 only
    report = by_hand([(1, [box(0, 20), box(0, 10)], 0)], [(1, [box(0, 30), None], 0.9)])
    assert report.overall["AP50"] == pytest.approx(1, abs=1e-12)
    assert report.overall["AP"] == pytest.approx(0.1, abs=1e-12)
    assert report.overall["AR100"] == pytest.approx(0.1, abs=1e-12)
    assert report.overall["AP75"] == 0


def test_a_wrong_detection_before_the_right_one_halves_the_precision():
    truth, other = [box(0, 20), box(0, 20)], [box(60, 90), box(60, 90)]
    report = by_hand([(1, truth, 0)], [(1, truth, 0.5), (1, other, 0.9)])
    assert report.overall["AP"] == pytest.approx(0.5, abs=1e-12)
    assert (report.overall["AR1"], report.overall["AR10"]) == (0, 1)
    report = by_hand([(1, truth, 0)], [(1, truth, 0.9), (1, other, 0.5)])
    assert report.overall["AP"] == pytest.approx(1, abs=1e-12)


def test_of_equal_scores_the_first_of_the_file_stands_first():
    truth, other = [box(0, 20), box(0, 20)], [box(60, 90), box(60, 90)]
    first = by_hand([(1, truth, 0)], [(1, truth, 0.5), (1, other, 0.5)])
    last = by_hand([(1, truth, 0)], [(1, other, 0.5), (1, truth, 0.5)])
    assert first.overall["AP"] == pytest.approx(1, abs=1e-12)
    assert last.overall["AP"] == pytest.approx(0.5, abs=1e-12)


def test_a_track_is_found_once_and_a_crowd_as_often_as_it_likes():
    masks = [box(0, 20), box(0, 20)]
    found = [(1, masks, 0.9), (1, masks, 0.8), (1, masks, 0.7)]
    other = (1, [box(50, 70), box(50, 70)])
    report = by_hand([(*other, 0), (1, masks, 1)], [*found, (*other, 0.1)])
    assert report.overall["AP"] == pytest.approx(1, abs=1e-12)  # none of the three counts
    assert report.tracks == 1
    report = by_hand([(*other, 0), (1, masks, 0)], [*found, (*other, 0.1)])
    # recall 1/2 at precision 1, recall 1 at 2/4: 51 and 50 of the 101 recalls
    assert report.overall["AP"] == pytest.approx((51 + 50 * 0.5) / 101, abs=1e-12)


def test_a_crowd_takes_one_detection_under_trackevals_rules():
    masks = [box(0, 20), box(0, 20)]
    other = (1, [box(50, 70), box(50, 70)])
    found = [(1, masks, 0.9), (1, masks, 0.8), (*other, 0.1)]
    report = by_hand([(*other, 0), (1, masks, 1)], found, rules=BURST)
    assert report.overall["AP"] == pytest.approx(0.5, abs=1e-12)


def test_classes_without_tracks_count_in_no_mean():
    masks = [box(0, 20), None]
    report = by_hand([(1, masks, 0)], [(1, masks, 0.5), (2, masks, 0.9)])
    assert report.overall["AP"] == pytest.approx(1, abs=1e-12)
    assert [found.ap for found in report.classes] == [pytest.approx(1, abs=1e-12), None]
    assert [found.predictions for found in report.classes] == [1, 1]
    one = by_hand([(1, masks, 0)], [(1, masks, 0.5), (2, masks, 0.9)], class_agnostic=True)
    assert (one.overall["AR1"], one.overall["AR100"], len(one.classes)) == (1, 1, 1)
    assert one.class_agnostic


def test_an_area_range_has_the_mean_over_the_frames_that_show_the_track():
    masks = [box(0, 100, height=200, width=200), None]  # 100 x 200 = 20000 > 128^2
    data = {
        "videos": [{"id": 1, "height": 200, "width": 200, "file_names": ["v/0.jpg", "v/1.jpg"]}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "video_id": 1, "category_id": 1, "segmentations": masks}],
    }
    found = [{"video_id": 1, "category_id": 1, "segmentations": masks, "score": 0.5}]
    report = evaluate(annotations_from_ytvis(data, "ytvis"), found)
    assert report.overall["AP_medium"] == pytest.approx(1, abs=1e-12)
    assert report.overall["AP_small"] is report.overall["AP_large"] is None
    data["annotations"][0]["areas"] = [100, None]  # the file's own areas go first, as officially
    report = evaluate(annotations_from_ytvis(data, "ytvis"), found)
    assert report.overall["AP_medium"] is None
    assert report.overall["AP_small"] == pytest.approx(1, abs=1e-12)


def test_tracks_that_are_never_seen_are_missed_and_empty_predictions_are_wrong():
    masks, nothing = [box(0, 20), None], [None, None]
    report = by_hand([(1, masks, 0), (1, nothing, 0)], [(1, nothing, 0.9), (1, masks, 0.5)])
    # one of two found, behind a wrong one
    assert report.overall["AR100"] == pytest.approx(0.5)
    assert report.overall["AP"] == pytest.approx(51 * 0.5 / 101, abs=1e-12)


def test_groups_and_curves():
    cat, dog = [box(0, 20), None], [box(50, 90), None]
    groups = {"base": frozenset({1}), "novel": frozenset({2})}
    report = by_hand([(1, cat, 0), (2, dog, 0)], [(1, cat, 0.5)], splits=groups)
    assert report.groups["base"]["AP"] == pytest.approx(1, abs=1e-12)
    assert report.groups["novel"]["AP"] == 0
    assert report.overall["AP"] == pytest.approx(0.5, abs=1e-12)
    assert list(report.curves)[::9] == ["0.50", "0.95"]
    assert report.curves["0.50"] == pytest.approx([0.5] * 101, abs=1e-12)


def test_results_of_no_video_are_zero_and_no_track_is_refused():
    report = by_hand([(1, [box(0, 20), None], 0)], [])
    assert (report.overall["AP"], report.overall["AR100"], report.predictions) == (0, 0, 0)
    with pytest.raises(InputError, match="no annotated track"):
        by_hand([], [])
