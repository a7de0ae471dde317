"""Phrases to embeddings: the tokenizer against open_clip's, and a cache that can only help."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save
from sealing import replaced

from openvis_rt.bundle.bundle import TOKENIZER, Bundle, write_manifest
from openvis_rt.errors import BundleError, VocabularyError
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.text import ClipTokenizer, TextEmbedder, keep_embeddings
from openvis_rt.runtime.text_cache import TextCache, cache_place
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


def _no_warning(message: str) -> None:
    raise AssertionError(f"warned: {message}")


def embedder(path: Path, *, open_session=None, warn=_no_warning) -> TextEmbedder:
    bundle = Bundle.open(path, verify=False)
    return TextEmbedder(
        bundle, "fp32", open_session or (lambda: OnnxRuntime("cpu").open(bundle, "text")), warn
    )


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch) -> Path:
    """The file in the user's cache directory, which is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home cache"))
    return tmp_path / "home cache" / "openvis-rt" / "embeddings.sqlite"


@contextlib.contextmanager
def edited(file: Path) -> Iterator[sqlite3.Connection]:
    """The cache as any program may change it."""
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        yield database


@pytest.fixture(scope="module")
def tokenizer(tiny_bundle) -> ClipTokenizer:
    return ClipTokenizer(Bundle.open(tiny_bundle))


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
            [ids] = tokenizer.batch([text]).tolist()
            assert ids == row[: len(ids)].tolist(), repr(text)
            assert not row[len(ids) :].any(), repr(text)


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


def test_order_and_company_of_a_phrase_do_not_change_its_embedding(bundle_copy, user_cache):
    many = Vocabulary(tuple(f"thing {i}" for i in range(20)))  # more than one batch of prompts
    forward = embedder(bundle_copy)(many)
    user_cache.unlink()
    backward = embedder(bundle_copy)(Vocabulary(many.names[::-1]))
    np.testing.assert_allclose(forward, backward[::-1], atol=1e-6)


def test_prompts_of_one_length_share_a_run_that_is_no_longer_than_they_are(bundle_copy, tokenizer):
    long = " ".join(["cat"] * 60)
    names = (long, *(f"thing {i}" for i in range(40)))
    session = OnnxRuntime("cpu").open(Bundle.open(bundle_copy), "text")
    written, write = [], session.write

    def watched(name, value):
        written.append(value.copy())
        write(name, value)

    session.write = watched
    embedder(bundle_copy, open_session=lambda: session)(Vocabulary(names))
    prompts = [p for name in names for p in prompts_for(name, VILD_PROMPTS)]
    assert sum(map(len, written)) == len(prompts)
    assert max(map(len, written)) <= 128
    lengths = [tokens.shape[1] for tokens in written]
    assert max(lengths) == max(len(tokenizer(prompt)) for prompt in prompts)
    assert sum(length > 30 for length in lengths) == 1  # the long name's
    assert all(tokens.any(axis=0).all() for tokens in written)  # no column of padding alone


def test_a_phrase_that_two_classes_share_is_embedded_once(bundle_copy):
    told = []
    shared = Vocabulary(("cat", "pet, cat"))
    found = embedder(bundle_copy)(shared, lambda done, total: told.append((done, total)))
    np.testing.assert_array_equal(found[0], found[2])
    assert told[-1] == (2, 2)


def test_known_phrases_come_from_the_cache_without_opening_the_graph(bundle_copy, user_cache):
    before = sorted(bundle_copy.rglob("*"))
    wanted = embedder(bundle_copy)(WORDS)
    assert list(user_cache.parent.iterdir()) == [user_cache]
    assert sorted(bundle_copy.rglob("*")) == before  # a bundle is never written to
    found = embedder(bundle_copy, open_session=_no_session)(WORDS)
    np.testing.assert_array_equal(found, wanted)


def test_a_new_vocabulary_costs_only_its_new_phrases(bundle_copy):
    embedder(bundle_copy)(WORDS)
    told = []
    more = Vocabulary((*WORDS.names, "zebra"))
    embedder(bundle_copy)(more, lambda done, total: told.append((done, total)))
    assert told[-1] == (1, 1)


def entry(key: str, vector: object) -> tuple[str, object, bytes]:
    """A row as the cache would write it, whatever the vector is."""
    content = vector if isinstance(vector, bytes) else b""
    return key, vector, hashlib.sha256(key.encode() + content).digest()


def unit(width: int, dtype: str = "<f4") -> np.ndarray:
    return np.full(width, width**-0.5, dtype)


PLANTED = {
    "one bit": lambda key, old: (key, bytes([old[1][0] ^ 0x40, *old[1][1:]]), old[2]),
    "its digest": lambda key, old: (key, old[1], bytes(32)),
    "another phrase's": lambda key, old: (key, unit(len(old[1]) // 4).tobytes(), old[2]),
    "too short": lambda key, old: entry(key, unit(3).tobytes()),
    "no vector": lambda key, old: entry(key, b""),
    "half a number": lambda key, old: entry(key, old[1][:-1]),
    "another type": lambda key, old: entry(key, unit(len(old[1]) // 4, "<f8").tobytes()),
    "text": lambda key, old: entry(key, "x"),
    "a number": lambda key, old: entry(key, 3),
    "not unit": lambda key, old: entry(key, (2 * unit(len(old[1]) // 4)).tobytes()),
    "zero": lambda key, old: entry(key, bytes(len(old[1]))),
    "NaN": lambda key, old: entry(key, (np.nan * unit(len(old[1]) // 4)).tobytes()),
    "infinite": lambda key, old: entry(key, (np.inf * unit(len(old[1]) // 4)).tobytes()),
}


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_a_wrong_cache_entry_is_not_used_and_is_mended(bundle_copy, planted, user_cache):
    wanted = embedder(bundle_copy)(WORDS)
    with edited(user_cache) as database:
        before = database.execute("SELECT * FROM embeddings ORDER BY key").fetchall()
        wrong = [planted(row[0], row) for row in before[::2]]
        database.executemany("REPLACE INTO embeddings VALUES (?, ?, ?)", wrong)
    # embedded in another company, so only as equal as sums of floats are
    np.testing.assert_allclose(embedder(bundle_copy)(WORDS), wanted, atol=1e-6)
    again = embedder(bundle_copy, open_session=_no_session)(WORDS)
    np.testing.assert_allclose(again, wanted, atol=1e-6)
    assert len(before) == 4


def test_an_entry_of_one_phrase_does_not_serve_another(bundle_copy, user_cache):
    wanted = embedder(bundle_copy)(WORDS)
    with edited(user_cache) as database:
        one, other, *_ = database.execute("SELECT * FROM embeddings").fetchall()
        database.execute("REPLACE INTO embeddings VALUES (?, ?, ?)", (one[0], *other[1:]))
    np.testing.assert_allclose(embedder(bundle_copy)(WORDS), wanted, atol=1e-6)


def test_what_was_embedded_before_an_interruption_is_kept(bundle_copy):
    names = tuple(f"thing {i}" for i in range(50))

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedder(bundle_copy)(Vocabulary(names), interrupt)
    told = []
    embedder(bundle_copy)(Vocabulary(names), lambda done, total: told.append((done, total)))
    assert told[0] == (0, 14)  # 36 phrases, 504 prompts, are kept together


# where it is kept


HOSTILE = {
    "a database": lambda place: place.touch(),
    "a journal": lambda place: place.with_name(f"{place.name}-journal").write_bytes(b"x" * 600),
    "a pipe": lambda place: (place.unlink(), os.mkfifo(place)),
    "a link that leads outside": lambda place: (place.unlink(), place.symlink_to("../../mine")),
}


@pytest.mark.parametrize("what", HOSTILE.values(), ids=HOSTILE)
def test_a_cache_that_comes_with_a_bundle_is_not_opened(bundle_copy, user_cache, tmp_path, what):
    wanted = embedder(bundle_copy)(WORDS)
    with edited(user_cache) as database:  # whole, with digests that hold, and wrong
        rows = database.execute("SELECT key FROM embeddings").fetchall()
        entries = [entry(key, unit(wanted.shape[1]).tobytes()) for (key,) in rows]
        database.executemany("REPLACE INTO embeddings VALUES (?, ?, ?)", entries)
    (bundle_copy / "text").mkdir()
    place = bundle_copy / "text" / "embeddings.sqlite"
    user_cache.rename(place)
    what(place)
    found = embedder(bundle_copy)(WORDS)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert not (tmp_path / "mine").exists()


def test_the_users_cache_is_below_home_where_nothing_else_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for named in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert cache_place() == tmp_path / ".cache/openvis-rt/embeddings.sqlite"


READ_ONLY = """
import os, sys
from openvis_rt.bundle.bundle import Bundle

bundle = Bundle.open(sys.argv[1])
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    with bundle.adding():
        raise AssertionError("it must not begin")
except Exception as exc:
    print(type(exc).__name__, exc)
"""


def test_a_bundle_that_was_made_read_only_is_not_added_to(bundle_copy):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        Path(folder).chmod(0o755)
        copy = Path(folder, "bundle")
        shutil.copytree(bundle_copy, copy)
        for path in [copy, *copy.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        ended = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(copy)], capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.startswith("OutputError cannot add to")
        assert "copy the bundle to a place that can be written" in ended.stdout


# a file that is of no use


def _foreign_database(file: Path) -> None:
    file.unlink()
    with edited(file) as database:
        database.execute("CREATE TABLE diary (text)")
        database.execute("INSERT INTO diary VALUES ('mine')")


def _other_columns(file: Path) -> None:
    with edited(file) as database:
        database.execute("DROP TABLE embeddings")
        database.execute("CREATE TABLE embeddings (key)")


def _directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGED = {
    "no database": lambda file: file.write_bytes(b"no database" * 100),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:3000]),
    "zeros": lambda file: file.write_bytes(file.read_bytes()[:100] + bytes(8000)),
    "foreign": _foreign_database,
    "other columns": _other_columns,
    "a directory": _directory,
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_cache_file_that_is_of_no_use_warns_once_and_stops_nothing(
    bundle_copy, damage, user_cache
):
    wanted = embedder(bundle_copy)(WORDS)
    damage(user_cache)
    damaged = [p.read_bytes() for p in user_cache.parent.iterdir() if p.is_file()]
    told: list[str] = []
    reader = embedder(bundle_copy, warn=told.append)
    np.testing.assert_allclose(reader(WORDS), wanted, atol=1e-6)
    np.testing.assert_array_equal(reader(WORDS), reader(WORDS))  # in memory it is all the same
    reader(Vocabulary(("zebra",)))
    [warning] = told
    assert str(user_cache) in warning
    assert "remove the file" in warning
    assert [p.read_bytes() for p in user_cache.parent.iterdir() if p.is_file()] == damaged


def test_where_nothing_can_be_written_there_is_one_warning(bundle_copy, user_cache):
    user_cache.parent.parent.write_text("in the way")
    told: list[str] = []
    reader = embedder(bundle_copy, warn=told.append)
    reader(WORDS)
    reader(Vocabulary(("zebra",)))
    [warning] = told
    assert "not cached" in warning


def test_an_empty_file_is_a_new_cache(bundle_copy, user_cache):
    user_cache.parent.mkdir(parents=True)
    user_cache.touch()  # as a process leaves it that dies at once
    embedder(bundle_copy)(WORDS)
    embedder(bundle_copy, open_session=_no_session)(WORDS)


def test_a_file_that_another_process_keeps_locked_stops_nothing(
    bundle_copy, monkeypatch, user_cache
):
    wanted = embedder(bundle_copy)(WORDS)
    monkeypatch.setattr("openvis_rt.runtime.text_cache._PATIENCE", 0.1)
    told: list[str] = []
    with edited(user_cache) as database:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("BEGIN EXCLUSIVE")
        found = embedder(bundle_copy, warn=told.append)(WORDS)
    np.testing.assert_array_equal(found, wanted)
    assert len(told) == 1
    assert "locked" in told[0]
    embedder(bundle_copy, open_session=_no_session)(WORDS)


KILLED = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 1")  # so that pages are written before the end
database.execute("BEGIN IMMEDIATE")
for number in range(2000):
    row = (str(number), bytes(1000), bytes(32))
    database.execute("INSERT INTO embeddings VALUES (?, ?, ?)", row)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_that_is_killed_leaves_the_cache_as_it_was(bundle_copy, user_cache):
    wanted = embedder(bundle_copy)(WORDS)
    file = user_cache
    ended = subprocess.run([sys.executable, "-c", KILLED, str(file)])
    assert ended.returncode == -signal.SIGKILL
    assert file.with_name(f"{file.name}-journal").stat().st_size > 0
    found = embedder(bundle_copy, open_session=_no_session)(WORDS)
    np.testing.assert_array_equal(found, wanted)
    with edited(file) as database:
        assert database.execute("SELECT count(*) FROM embeddings").fetchone() == (4,)


# many phrases, many processes


CROWD = """
import sys
import numpy as np
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.runtime.text_cache import TextCache

bundle, own = Bundle.open(sys.argv[1], verify=False), int(sys.argv[2])
warnings = []
cache = TextCache(bundle, "fp32", 512, warnings.append)

def vector(number):
    values = np.random.default_rng(number).standard_normal(512).astype(np.float32)
    return values / np.linalg.norm(values)

for turn in range(25):
    numbers = [*range(turn * 20, turn * 20 + 20), 10_000 * own + turn]  # shared ones, and its own
    found = cache.get(map(str, numbers))
    for name, embedding in found.items():
        np.testing.assert_array_equal(embedding, vector(int(name)))
    cache.put({str(n): vector(n) for n in numbers if str(n) not in found})
assert len(cache.get(map(str, range(500)))) == 500
assert warnings == [], warnings
"""


def test_four_processes_share_a_cache(bundle_copy, user_cache):
    command = [sys.executable, "-c", CROWD, str(bundle_copy)]
    crowd = [
        subprocess.Popen([*command, str(own)], stderr=subprocess.PIPE, text=True)
        for own in range(1, 5)
    ]
    for process in crowd:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    with edited(user_cache) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM embeddings").fetchone() == (600,)


def test_five_thousand_phrases_are_one_file_and_quick(bundle_copy, user_cache):
    vectors = np.random.default_rng(0).standard_normal((5000, 512)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    wanted = {f"phrase {i}": vector for i, vector in enumerate(vectors)}
    bundle = Bundle.open(bundle_copy, verify=False)
    begin = time.process_time()
    TextCache(bundle, "fp32", 512, _no_warning).put(wanted)
    found = TextCache(bundle, "fp32", 512, _no_warning).get(wanted)
    seconds = time.process_time() - begin
    assert list(user_cache.parent.iterdir()) == [user_cache]
    assert found.keys() == wanted.keys()
    for phrase, vector in wanted.items():
        np.testing.assert_array_equal(found[phrase], vector)
    assert seconds < 2  # of processor time; 0.3 measured


@pytest.mark.parametrize("field", ["text_sha256", "prompts"])
def test_the_cache_of_other_text_weights_or_prompts_is_not_used(bundle_copy, field):
    embedder(bundle_copy)(WORDS)
    manifest = Bundle.open(bundle_copy).manifest
    value = "0" * 64 if field == "text_sha256" else ("a {}",)
    write_manifest(bundle_copy, replace(manifest, **{field: value}), [TOKENIZER])
    with pytest.raises(AssertionError, match="was opened"):
        embedder(bundle_copy, open_session=_no_session)(WORDS)


def test_the_cache_of_another_text_graph_is_not_used_whatever_the_manifest_claims(bundle_copy):
    embedder(bundle_copy)(WORDS)
    bundle = Bundle.open(bundle_copy)
    graph = bundle.graph_path("text", "fp32")
    data = graph.read_bytes()
    graph.unlink()
    graph.write_bytes(data + b"\x12\x00")  # the field `producer_name`, empty: another digest
    write_manifest(bundle_copy, bundle.manifest, [TOKENIZER])
    assert Bundle.open(bundle_copy).manifest.text_sha256 == bundle.manifest.text_sha256
    with pytest.raises(AssertionError, match="was opened"):
        embedder(bundle_copy, open_session=_no_session)(WORDS)


def test_another_precision_has_entries_of_its_own(bundle_copy):
    embedder(bundle_copy)(WORDS)
    bundle = Bundle.open(bundle_copy, verify=False)
    half = TextEmbedder(bundle, "fp16", _no_session, _no_warning)
    with pytest.raises(AssertionError, match="was opened"):
        half(WORDS)


def test_a_tokenizer_that_is_not_listed_is_no_part_of_the_bundle(bundle_copy):
    write_manifest(bundle_copy, Bundle.open(bundle_copy).manifest)
    with pytest.raises(BundleError, match="does not list it"):
        embedder(bundle_copy)


def test_names_that_are_perhaps_not_english_are_told_once(bundle_copy):
    told: list[str] = []
    embed = embedder(bundle_copy, warn=told.append)
    embed(Vocabulary(("cat", "crow's nest", "20 mm")))
    assert told == []
    embed(Vocabulary(("cat", "犬", "Schildkröte")))
    embed(Vocabulary(("собака",)))
    [hint] = told
    assert "'犬' and 1 more names have letters beyond a to z" in hint


def test_names_that_were_kept_at_export_need_no_graph(bundle_copy, user_cache):
    wanted = embedder(bundle_copy)(Vocabulary(("hound", "cat")))
    kept = keep_embeddings(Bundle.open(bundle_copy), ("cat", "dog, hound", "Cat"))
    user_cache.unlink()
    assert Bundle.open(bundle_copy).sha256 == kept.sha256
    assert "names.safetensors" in kept.manifest.files
    embed = embedder(bundle_copy, open_session=_no_session)
    np.testing.assert_allclose(embed(Vocabulary(("hound", "cat"))), wanted, atol=1e-6)


@pytest.mark.parametrize("other", ["ﬁsh", "fish\x01", "fish\ufeff", "\x1b[31mfish"])
def test_names_of_the_same_tokens_are_refused(bundle_copy, other):
    with pytest.raises(VocabularyError, match="are the same tokens to CLIP"):
        embedder(bundle_copy, open_session=_no_session)(Vocabulary(("fish", "cat", other)))
    shared = Vocabulary(("fish", f"cat, {other}"))  # as a synonym may be
    assert len(embedder(bundle_copy, warn=lambda _: None)(shared)) == 3


def test_names_that_change_for_ever_are_forgotten_in_memory(bundle_copy, monkeypatch):
    monkeypatch.setattr("openvis_rt.runtime.text._KEPT", 5)
    embed = embedder(bundle_copy)
    wanted = embed(Vocabulary(("thing 0", "thing 1")))
    for turn in range(1, 10):
        embed(Vocabulary((f"thing {turn}", f"thing {turn + 1}")))
        assert len(embed._known) <= 7
    np.testing.assert_array_equal(embed(Vocabulary(("thing 0", "thing 1"))), wanted)


NAMES = {
    "cut": lambda data: data[:-4],
    "another width": lambda data: _names(data, lambda rows: rows[:, :-1]),
    "fewer": lambda data: _names(data, lambda rows: rows[:-1]),
    "not unit": lambda data: _names(data, lambda rows: 2 * rows),
    "NaN": lambda data: _names(data, lambda rows: rows * np.nan),
    "FP16": lambda data: _names(data, lambda rows: rows.astype("<f2")),
    "no phrases": lambda data: save(load(data)),
    "numbers": lambda data: save(load(data), {"phrases": "[1, 2, 3]", "precision": "fp32"}),
}


def _names(data: bytes, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    facts = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    rows = np.ascontiguousarray(change(load(data)["embeddings"]))
    return save({"embeddings": rows}, facts)


@pytest.mark.parametrize("damage", NAMES.values(), ids=NAMES)
def test_names_that_no_export_wrote_are_refused(bundle_copy, damage):
    keep_embeddings(Bundle.open(bundle_copy), ("cat", "dog, hound"))
    data = (bundle_copy / "names.safetensors").read_bytes()
    replaced(bundle_copy, "names.safetensors", damage(data))
    with pytest.raises(BundleError, match="is damaged"):
        embedder(bundle_copy)
