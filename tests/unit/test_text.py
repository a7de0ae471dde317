"""Phrases to embeddings: the tokenizer against open_clip's, and a cache that can only help."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from openvis_rt.bundle.bundle import MANIFEST, Bundle, write_manifest
from openvis_rt.errors import VocabularyError
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.text import ClipTokenizer, TextEmbedder
from openvis_rt.vocabulary import VILD_PROMPTS, Vocabulary, prompts_for

WORDS = Vocabulary(("cat", "monkey, ape", "giant_panda"))
TEXTS = [
    "",
    " ",
    "a",
    "A photo of a CAT.",
    "  two\tspaces \n and  lines ",
    "it's they're we'll I've you'd I'm 'tis",
    "2024 12345 3.14 1/2 ½ ² ⅷ ٣",
    "giant_panda earless_seal __init__ _",
    "bow (weapon) [x] {} {0} %s $5 #1 @me a&b a+b=c ~ ^ ` \\ | <tag>",
    "fish &amp; chips &amp;amp; &lt;b&gt; &#39; &eacute; &nbsp; x",
    "--- ... !!! ?!? ;-) a-b-c e.g. U.S.A.",
    "café naïve Straßenbahn ÄÖÜ ŁÓDŹ İstanbul ĲSSEL",
    "cafe\u0301 e\u0308",  # combining marks
    "猫 ねこ ネコ 고양이 แมว बिल्ली",
    "собака Ёлка ΣΊΣΥΦΟΣ קטן قطة",
    "🐈 👩‍👩‍👧 🇩🇪 ✈️ ☃",
    "“smart” ‘quotes’ – dash — … ™ © ﬁ ﬂ",  # noqa: RUF001
    "Ã©tÃ© donâ€™t",  # text that was decoded wrongly once; ftfy mends it
    "\u200bzero\u200dwidth\u00a0space\u3000wide",
    "ＦＵＬＬ　ＷＩＤＴＨ１２",  # noqa: RUF001
    "x" * 60,
    "\x00 \x07 \x1b[31m",
]
ALPHABET = "abcXYZ019 '.,_-&;é猫🐈ßД#/(\u0301\n\""


def _no_session():
    raise AssertionError("the text graph was opened, and the cache should have sufficed")


def embedder(path: Path, *, open_session=None) -> TextEmbedder:
    bundle = Bundle.open(path, verify=False)
    return TextEmbedder(
        bundle, "fp32", open_session or (lambda: OnnxRuntime("cpu").open(bundle, "text"))
    )


def cache_files(bundle: Path) -> list[Path]:
    return sorted((bundle / "text").glob("*"))


@pytest.fixture(scope="module")
def tokenizer(tiny_bundle) -> ClipTokenizer:
    return ClipTokenizer(tiny_bundle / "tokenizer" / "tokenizer.json")


def varied_texts() -> list[str]:
    rng = random.Random(0)
    made = ["".join(rng.choices(ALPHABET, k=rng.randint(1, 24))) for _ in range(400)]
    return [*TEXTS, *made, *prompts_for("traffic light", VILD_PROMPTS)]


def test_tokens_are_those_of_open_clip(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import open_clip
    texts = varied_texts()
    wanted = open_clip.get_tokenizer("RN50")(texts).numpy()
    cut = [len(tokenizer(text)) > 77 for text in texts]  # open_clip truncates, this package refuses
    assert sum(cut) <= 2
    for text, row, long in zip(texts, wanted, cut, strict=True):
        if not long:
            assert tokenizer.batch([text])[0].tolist() == row.tolist(), repr(text)


def test_a_name_cannot_smuggle_in_the_tokens_that_begin_and_end_a_phrase(tokenizer):
    ids = tokenizer("<start_of_text>cat<end_of_text> <|endoftext|>")  # open_clip would take them
    assert (ids.count(49406), ids.count(49407)) == (1, 1)


def test_the_longest_text_that_clip_reads_fits_and_one_word_more_does_not(tokenizer):
    assert tokenizer.batch([" ".join(["cat"] * 75)])[0, -1] == 49407
    with pytest.raises(VocabularyError, match="76 tokens"):
        tokenizer.batch([" ".join(["cat"] * 76)])


@pytest.mark.parametrize("text", ["x" * 10_000, "cat " * 2_500, "猫" * 10_000])
def test_a_phrase_of_ten_thousand_characters_is_refused_in_a_short_message(bundle_copy, text):
    with pytest.raises(VocabularyError, match="tokens") as caught:
        embedder(bundle_copy, open_session=_no_session)(Vocabulary(("cat", text)))
    assert len(str(caught.value)) < 400
    assert caught.value.exit_code == 2


def test_bytes_of_the_command_line_that_are_no_text_are_refused(bundle_copy):
    with pytest.raises(VocabularyError):
        embedder(bundle_copy)(Vocabulary(("cat\udcff",)))


def test_an_embedding_is_the_unit_mean_of_its_unit_prompts(bundle_copy, tokenizer):
    found = embedder(bundle_copy)(WORDS)
    session = OnnxRuntime("cpu").open(Bundle.open(bundle_copy), "text")
    for row, phrase in zip(found, WORDS.phrases, strict=True):
        tokens = tokenizer.batch(prompts_for(phrase, VILD_PROMPTS))
        session.write("tokens", tokens)
        session.run()
        each = session.fetch("embeddings").astype(np.float64)
        mean = (each / np.linalg.norm(each, axis=1, keepdims=True)).mean(0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)
    session.close()


def test_order_and_company_of_a_phrase_do_not_change_its_embedding(bundle_copy):
    many = Vocabulary(tuple(f"thing {i}" for i in range(20)))  # more than one batch of prompts
    forward = embedder(bundle_copy)(many)
    shutil.rmtree(bundle_copy / "text")
    backward = embedder(bundle_copy)(Vocabulary(many.names[::-1]))
    np.testing.assert_allclose(forward, backward[::-1], atol=1e-6)


def test_a_phrase_that_two_classes_share_is_embedded_once(bundle_copy):
    told = []
    shared = Vocabulary(("cat", "pet, cat"))
    found = embedder(bundle_copy)(shared, lambda done, total: told.append((done, total)))
    np.testing.assert_array_equal(found[0], found[2])
    assert told[-1] == (2, 2)


def test_known_phrases_come_from_the_cache_without_opening_the_graph(bundle_copy):
    wanted = embedder(bundle_copy)(WORDS)
    assert len(cache_files(bundle_copy)) == 4
    Bundle.open(bundle_copy)  # the cache is no part of what the manifest checks
    found = embedder(bundle_copy, open_session=_no_session)(WORDS)
    np.testing.assert_array_equal(found, wanted)


def test_a_new_vocabulary_costs_only_its_new_phrases(bundle_copy):
    embedder(bundle_copy)(WORDS)
    told = []
    more = Vocabulary((*WORDS.names, "zebra"))
    embedder(bundle_copy)(more, lambda done, total: told.append((done, total)))
    assert told[-1] == (1, 1)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x40
    path.write_bytes(data)


def _without_facts(path: Path) -> None:
    save_file(load_file(path), path)


def _other_tensor(path: Path) -> None:
    save_file({"other": np.ones(3, np.float32)}, path)


def _other_phrase(path: Path) -> None:
    shutil.copyfile(next(p for p in cache_files(path.parents[1]) if p != path), path)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [_truncate, _flip, _without_facts, _other_tensor, _other_phrase, lambda p: p.write_bytes(b"")],
)
def test_a_damaged_cache_entry_is_not_used_and_is_mended(bundle_copy, damage):
    wanted = embedder(bundle_copy)(WORDS)
    before = {path: path.read_bytes() for path in cache_files(bundle_copy)}
    for path in list(before)[::2]:
        damage(path)
    # embedded in another company, so only as equal as sums of floats are
    np.testing.assert_allclose(embedder(bundle_copy)(WORDS), wanted, atol=1e-6)
    again = embedder(bundle_copy, open_session=_no_session)(WORDS)
    np.testing.assert_allclose(again, wanted, atol=1e-6)


@pytest.mark.parametrize("place", ["a file", "an entry"])
def test_a_cache_that_cannot_be_written_warns_once_and_works(bundle_copy, place):
    wanted = embedder(bundle_copy)(WORDS)
    if place == "a file":  # as good as a read-only folder, and it stops root as well
        shutil.rmtree(bundle_copy / "text")
        (bundle_copy / "text").write_text("in the way")
    else:
        for path in cache_files(bundle_copy):
            _directory(path)
    reader = embedder(bundle_copy)
    np.testing.assert_allclose(reader(WORDS), wanted, atol=1e-6)
    assert len(reader.warnings) == 1
    assert "not cached" in reader.warnings[0]
    np.testing.assert_array_equal(reader(WORDS), reader(WORDS))  # in memory it is all the same


@pytest.mark.parametrize("field", ["text_sha256", "prompts"])
def test_the_cache_of_other_text_weights_or_prompts_is_not_used(bundle_copy, field):
    embedder(bundle_copy)(WORDS)
    data = json.loads((bundle_copy / MANIFEST).read_text())
    data[field] = "0" * 64 if field == "text_sha256" else ["a {}"]
    manifest = Bundle.open(bundle_copy).manifest.from_json(data)
    write_manifest(bundle_copy, manifest)
    with pytest.raises(AssertionError, match="was opened"):
        embedder(bundle_copy, open_session=_no_session)(WORDS)
