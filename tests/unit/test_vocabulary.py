"""Class names: what is refused and why, synonyms, and the files that hold them."""

from __future__ import annotations

import html
import json

import ftfy
import pytest

from openvis_rt.errors import VocabularyError
from openvis_rt.vocabulary import NAME_LISTS, VILD_PROMPTS, Vocabulary, as_clip_reads, prompts_for


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "empty"),
        (("cat", ""), "class 2"),
        (("  ",), "class 1"),
        (("cat", "monkey,"), "class 2"),
        (("monkey, , ape",), "class 1"),
        (("cat", "dog", "cat"), "classes 1 and 3"),
        (("cat", " cat "), "classes 1 and 2"),
    ],
)
def test_what_cannot_be_classified_is_refused_by_its_place(names, message):
    with pytest.raises(VocabularyError, match=message) as caught:
        Vocabulary(names)
    assert caught.value.exit_code == 2


def test_one_string_is_not_taken_for_a_list_of_letters():
    with pytest.raises(VocabularyError):
        Vocabulary.of("cat")


@pytest.mark.parametrize(
    ("name", "phrases"),
    [
        ("cat", ["cat"]),
        ("monkey, ape", ["monkey", "ape"]),
        ("giant_panda,panda", ["giant_panda", "panda"]),
        ("a ,b,  c", ["a", "b", "c"]),
        ("earless_seal", ["earless_seal"]),  # underscores stay, as in the public code
        ("bow (weapon)", ["bow (weapon)"]),
        ("猫, ねこ", ["猫", "ねこ"]),
        ("Straßenbahn", ["Straßenbahn"]),
    ],
)
def test_commas_part_synonyms_and_nothing_else_is_changed(name, phrases):
    vocabulary = Vocabulary((name,))
    assert vocabulary.phrases == phrases
    assert vocabulary.rows_of_class == [len(phrases)]
    assert vocabulary.names == (name,)


def test_a_vocabulary_as_large_as_lv_vis_keeps_its_order():
    names = tuple(f"class_{i}, synonym {i}" if i % 3 else f"class_{i}" for i in range(1196))
    vocabulary = Vocabulary.of(iter(names))
    assert len(vocabulary) == 1196
    assert len(vocabulary.phrases) == sum(vocabulary.rows_of_class)
    ends = [sum(vocabulary.rows_of_class[: i + 1]) for i in (0, 1, 1195)]
    assert [vocabulary.phrases[e - 1] for e in ends] == ["class_0", "synonym 1", "synonym 1195"]


def test_every_prompt_holds_the_phrase_as_it_is():
    prompts = prompts_for("a {} of 50 % {0}", VILD_PROMPTS)
    assert len(prompts) == 14
    assert all("a {} of 50 % {0}" in prompt for prompt in prompts)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("lines.txt", "# two classes\ncat\n\n  monkey, ape  \n"),
        ("windows.txt", "\ufeffcat\r\nmonkey, ape\r\n"),
        ("list.json", '["cat", "monkey, ape"]'),
        ("objects.json", '[{"name": "cat", "id": 9}, {"name": "monkey, ape"}]'),
        (
            "lvvis.JSON",
            json.dumps(
                {
                    "videos": [],
                    "categories": [{"id": 2, "name": "monkey, ape"}, {"id": 1, "name": "cat"}],
                }
            ),
        ),
    ],
)
def test_every_form_of_file_gives_the_same_vocabulary(tmp_path, file, text):
    path = tmp_path / file
    path.write_bytes(text.encode())
    assert Vocabulary.from_file(path) == Vocabulary(("cat", "monkey, ape"))


def test_names_of_any_language_are_read_from_a_file(tmp_path):
    names = ("猫", "Straßenbahn", "собака", "قطة", "café", "🐈")
    path = tmp_path / "names.txt"
    path.write_text("\n".join(names), encoding="utf-8")
    assert Vocabulary.from_file(path).names == names


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("bad.json", b"{"),
        ("number.json", b"7"),
        ("null.json", b"null"),
        ("string.json", b'"cat"'),
        ("numbers.json", b"[1, 2]"),
        ("no_names.json", b'[{"id": 1}]'),
        ("no_categories.json", b'{"videos": []}'),
        ("no_ids.json", b'{"categories": [{"name": "cat"}, {"name": "dog"}]}'),
        ("empty.json", b"[]"),
        ("empty.txt", b"# nothing\n\n"),
        ("latin1.txt", "Stra\xdfenbahn".encode("latin-1")),
        ("video.txt", bytes(range(256))),
    ],
)
def test_a_malformed_file_is_refused_by_its_name(tmp_path, file, content):
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(VocabularyError) as caught:
        Vocabulary.from_file(path)
    assert file in str(caught.value) or "empty" in str(caught.value)


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(
            VocabularyError, match=r"cannot be read|no regular file but a directory"
        ):
            Vocabulary.from_file(path)


def test_names_among_others_keep_their_rows_and_hide_what_stands_twice():
    words = Vocabulary(("dog, hound", "Red Ring")).among(["cat", "Dog", "red ring", "cat, kitten"])
    assert words.names == ("dog, hound", "Red Ring")
    assert words.others == ("cat",)
    assert words.phrases == ["dog", "hound", "Red Ring", "cat"]
    assert words.rows_of_class == [2, 1, 1]
    assert len(words) == 2


@pytest.mark.parametrize(("name", "count"), [("coco", 80), ("lvis", 1203), ("miniature", 229)])
def test_the_lists_that_come_with_the_package(name, count):
    assert name in NAME_LISTS
    assert len(Vocabulary.named(name)) == count


def test_a_list_that_is_not_there_is_named():
    with pytest.raises(VocabularyError, match=r"coco, lvis, miniature"):
        Vocabulary.named("imagenet")


@pytest.mark.parametrize(
    "same", ["Disc", " disc", "DISC", "&#100;isc", "\uff44\uff49\uff53\uff43", "tea  cup, disc"]
)
def test_names_that_clip_reads_alike_stand_twice(same):
    first = "tea cup, disc" if "," in same else "disc"
    with pytest.raises(VocabularyError, match=r"stands twice.*split between them"):
        Vocabulary((first, same))
    assert Vocabulary((first,)).among([same, "cat"]).others == ("cat",)


def test_names_that_differ_for_clip_stay():
    names = ("disc", "disk", "a disc", "R&D", "R & D", "犬")
    assert Vocabulary(names).names == names


@pytest.mark.parametrize("name", ["&#32;", "\u3000", "cat, &nbsp;"])
def test_a_name_of_which_clip_reads_nothing_is_empty(name):
    with pytest.raises(VocabularyError, match="has an empty name or synonym"):
        Vocabulary((name,))


@pytest.mark.parametrize("text", ["Disc", "a  b\t", "&amp;lt;3", "crow\u2019s \u201cNest\u201d"])
def test_it_is_what_open_clip_makes_of_it(text):
    wanted = html.unescape(html.unescape(ftfy.fix_text(text)))
    assert as_clip_reads(text) == " ".join(wanted.lower().split())


@pytest.mark.parametrize("name", [None, ["cat", "dog"], {"x": 1}, True, 7])
def test_a_name_in_a_file_is_a_string(tmp_path, name):
    path = tmp_path / "names.json"
    path.write_text(json.dumps([{"name": "disc"}, {"name": name}]))
    with pytest.raises(VocabularyError, match=f"class 2 .* of type {type(name).__name__}"):
        Vocabulary.from_file(path)
