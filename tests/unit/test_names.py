"""Names that compete and are not reported: in the scores, in a run, and on the command line."""

from __future__ import annotations

import numpy as np
import pytest

from openvis_rt import Pipeline, Vocabulary
from openvis_rt.cli.names import default_list, names_beside, words_beside
from openvis_rt.errors import InputError, VocabularyError
from openvis_rt.runtime.options import Selection
from openvis_rt.runtime.tracking.rules import scores_from_rule
from openvis_rt.systems.system import Score

RULES = [
    Score("frame-probabilities"),
    Score("frame-logits"),
    Score("mean-logits", {"formula": "softmax", "visible_only": True}),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_class_that_is_not_reported_takes_its_share_and_is_never_shown(rule):
    """Track 0 is of class 0, track 1 of class 2, of which only two classes can be reported."""
    rows = np.array([[5, 1, 0], [0, 1, 5]], np.float32)
    share = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    output = {
        "class_scores": share if rule.name == "frame-probabilities" else rows,
        "mask_iou": np.ones(2, np.float32),
        "object_logits": np.array([[4, -4], [4, -4]], np.float32),
        "mask_area": np.full(2, 10, np.float32),
        "mask_mass": np.full(2, 9, np.float32),
    }
    whole = scores_from_rule(rule, 2, [1, 1, 1], keep=True)
    some = scores_from_rule(rule, 2, [1, 1, 1], keep=True, reported=2)
    for scores in (whole, some):
        scores.add_output(output, np.arange(2))
    categories, best, shown = some.running_scores()
    assert categories.tolist() == [0, 2]
    assert shown.tolist() == [True, False]
    assert np.array_equal(best, whole.running_scores()[1])
    found = {(d.track, d.category): d.score for d in some.detections(10)}
    every = {(d.track, d.category): d.score for d in whole.detections(10)}
    assert found == {pair: score for pair, score in every.items() if pair[1] < 2}
    assert len(found) == 4
    for scores in (whole, some):
        scores.close()


def test_a_pipeline_reports_no_other_name(cached_bundle):
    """The best of two names loses its objects once their real name takes part."""
    frames = [np.full((60, 100, 3), 40 * i, np.uint8) for i in range(3)]
    everything = Selection(threshold=0.0, limit=50)
    options = {"backend": "onnxruntime", "selection": everything, "mode": "stream"}
    with Pipeline.open(cached_bundle, vocabulary=["cat", "dog", "owl"], **options) as pipeline:
        alone = list(pipeline.stream(iter(frames)))
    words = Vocabulary(("cat",)).among(["dog", "owl"])
    with Pipeline.open(cached_bundle, vocabulary=words, **options) as pipeline:
        assert pipeline.class_names == ("cat",)
        found = list(pipeline.stream(iter(frames)))
    for one, other in zip(alone, found, strict=True):
        cats = [i for i in one.instances if i.name == "cat"]
        assert [(i.track_id, i.score) for i in other.instances] == [
            (i.track_id, i.score) for i in cats
        ]


def test_which_names_compete(tmp_path):
    few = Vocabulary(("dog",))
    assert default_list("clip-vis-r50", few, from_file=False) == "coco"
    assert default_list("clip-vis-mini", few, from_file=False) == "miniature"
    assert default_list("clip-vis-r50", few, from_file=True) == ""
    assert default_list("ovformer-video-r50", few, from_file=False) == ""
    assert default_list("of-tomorrow", few, from_file=False) == ""
    many = Vocabulary(tuple(f"name {i}" for i in range(20)))
    assert default_list("clip-vis-r50", many, from_file=False) == ""
    assert len(names_beside(None, None, "coco", only=False)) == 80
    assert names_beside(["sky"], None, "", only=False) == ("sky",)
    assert len(names_beside(["sky"], None, "coco", only=False)) == 81  # it adds to the list
    assert names_beside(None, None, "coco", only=True) == ()
    (tmp_path / "mine.txt").write_text("sky\nsea\n")
    beside = names_beside(["sand"], str(tmp_path / "mine.txt"), "coco", only=False)
    assert beside == ("sand", "sky", "sea")
    with pytest.raises(InputError, match="--only"):
        names_beside(["sky"], None, "", only=True)
    with pytest.raises(VocabularyError, match="cannot be read"):
        names_beside(None, str(tmp_path / "none.txt"), "", only=False)


def test_the_list_of_the_miniatures_is_their_world():
    from openvis_rt.training.world_categories import CATEGORIES

    assert Vocabulary.named("miniature").names == tuple(c.phrase for c in CATEGORIES)


def test_what_competes_unasked_is_said():
    few = Vocabulary(("person", "dog"))
    beside = few.among(("sky", "car"))

    def said(words: Vocabulary, default: str, *, asked: bool = False, from_file: bool = False):
        return words_beside("clip-vis-r50", words, default, asked=asked, from_file=from_file)

    assert said(beside, "coco").startswith("2 more names (coco) take part")
    assert "--others coco lets more names" in said(few, "", from_file=True)
    assert said(few, "", from_file=True, asked=True) == said(beside, "coco", asked=True) == ""
    assert said(few, "") == said(beside, "", from_file=True) == ""
    assert words_beside("ovformer-video-r50", few, "", asked=False, from_file=True) == ""
