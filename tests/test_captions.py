import pytest

from dopsd_app.data.captions import advise, lint_captions
from dopsd_app.data.drafts import set_captions, set_settings
from dopsd_app.data.uploads import list_examples, load_example

PLACES = ("on a beach", "in the snow", "next to a red car", "sleeping on a sofa", "in a forest at night")


def lint(pattern, trigger_word="zorp", kind="subject", places=PLACES):
    captions = {str(number): [pattern.format(place)] for number, place in enumerate(places)}
    return lint_captions(captions, trigger_word, kind)


def named(advice):
    """The words that the advice on the whole set puts in quotes."""
    return [text.split("”")[0] for sentence in advice.get("", ()) for text in sentence.split("“")[1:]]


@pytest.mark.parametrize("example", list_examples(), ids=lambda example: example.name)
def test_the_examples_lint_clean(tmp_path, example):
    assert advise(load_example(tmp_path, example.name)) == {}


@pytest.mark.parametrize(
    "pattern",
    [
        "zorp {}",
        "a photo of zorp {}",
        "zorp {} in the background",
        "a zorp, {}",
        "ein zorp vor dem Hintergrund {}",
    ],
)
def test_good_captions_get_no_advice(pattern):
    assert lint(pattern) == {}


def test_words_that_never_change_are_named_in_their_order():
    advice = lint("a fluffy white zorp dog with blue eyes {}")
    assert named(advice) == ["fluffy", "white", "dog", "blue", "eyes"]
    assert "What never changes about the subject" in advice[""][0]
    assert list(advice) == [""]


def test_a_word_is_named_from_four_fifths_of_the_captions_on():
    captions = {str(number): [f"zorp {place}"] for number, place in enumerate(PLACES)}
    for number in "0123":
        captions[number] = [f"fluffy {captions[number][0]}"]
    assert named(lint_captions(captions, "zorp", "subject")) == ["fluffy"]  # 4 of 5
    captions["3"] = [f"zorp {PLACES[3]}"]
    assert lint_captions(captions, "zorp", "subject") == {}  # 3 of 5


def test_three_captions_are_too_few_to_say_what_never_changes():
    assert lint("a fluffy zorp {}", places=PLACES[:3]) == {}
    assert named(lint("a fluffy zorp {}", places=PLACES[:4])) == ["fluffy"]


def test_of_several_captions_of_a_picture_half_must_have_the_word():
    once = {str(n): [f"zorp {place}", f"fluffy zorp {place}", "zorp"] for n, place in enumerate(PLACES)}
    twice = {str(n): [f"zorp {place}", f"fluffy zorp {place}"] for n, place in enumerate(PLACES)}
    assert lint_captions(once, "zorp", "subject") == {}
    assert named(lint_captions(twice, "zorp", "subject")) == ["fluffy"]


def test_a_style_is_not_to_be_described_but_may_be_called_a_style():
    advice = lint("a watercolour of a thing {} in zorp style", kind="style")
    assert named(advice) == ["watercolour", "thing"]
    assert "What belongs to the style" in advice[""][0]
    assert lint("a cup {} in zorp style", kind="style", places=("one", "two", "three")) == {}


def test_the_rule_needs_no_language():
    assert named(lint("пушистый zorp {}")) == ["пушистый"]


def test_a_missing_trigger_word_is_told_at_its_picture():
    captions = {"a": ["zorp on a hill"], "b": ["a dog at home"], "c": ["zorps here"], "d": ["a zorp's nose"]}
    advice = lint_captions(captions, "zorp", "subject")
    assert advice == {key: ("The caption lacks the trigger word “zorp”.",) for key in "bc"}


def test_of_several_captions_the_one_without_the_trigger_word_is_quoted():
    captions = {"a": ["zorp at home", "a dog at home"], "b": ["a", "b"]}
    advice = lint_captions(captions, "zorp", "subject")
    assert advice["a"] == ("“a dog at home” lacks the trigger word “zorp”.",)
    assert advice["b"] == ("Each caption lacks the trigger word “zorp”.",)


def test_other_capitals_are_told():
    advice = lint_captions({"a": ["Zorp at home"], "b": ["zorp outside"]}, "zorp", "subject")
    assert list(advice) == ["a"]
    assert "same capitals" in advice["a"][0]


@pytest.mark.parametrize("caption", ["一只zorp在沙滩上", "zorp가 집에 있다", "a [zorp], at home", "zorp"])
def test_the_trigger_word_is_found_between_signs_and_in_scripts_without_spaces(caption):
    assert lint_captions({"a": [caption]}, "zorp", "subject") == {}


def test_a_trigger_word_may_hold_any_signs():
    assert lint_captions({"a": ["a cat in [V] style"]}, "[V]", "style") == {}
    assert "a" in lint_captions({"a": ["a cat in V style"]}, "[V]", "style")


@pytest.mark.parametrize("word", ["dog", "Person", "my dog", "the style", "Katze"])
def test_an_ordinary_trigger_word_is_told(word):
    [sentence] = lint_captions({"a": [f"{word} at home"]}, word, "subject")[""]
    assert sentence.startswith(f"The model has a meaning of its own for “{word}”")
    assert f"zorp {word.lower().split()[-1]}" in sentence


@pytest.mark.parametrize("word", ["sks dog", "ohwx man", "zorp style"])
def test_a_rare_word_before_an_ordinary_one_is_what_most_people_write(word):
    assert lint_captions({"a": [f"a photo of {word} at home"]}, word, "subject") == {}


@pytest.mark.parametrize(
    "sign", ["(dog:1.2)", "( big ears : .8 )", "<lora:zorp_v2:0.8>", "<LORA: a:1>", "|||"]
)
def test_the_signs_of_other_programs_are_told(sign):
    [sentence] = lint_captions({"a": [f"zorp, {sign} at home"]}, "zorp", "subject")["a"]
    assert sentence.startswith(f"“{sign}” is learned as it stands")


@pytest.mark.parametrize(
    "caption", ["zorp at 12:30", "zorp (left: a cat)", "zorp (asleep)", "1girl, zorp, solo, <3", "zorp | cat"]
)
def test_brackets_and_tags_are_fine(caption):
    assert lint_captions({"a": [caption]}, "zorp", "subject") == {}


def test_a_placeholder_counts_as_the_trigger_word(tmp_path):
    draft = load_example(tmp_path, "zorp")
    texts = {item.key: item.caption.replace("zorp", "[trigger]") for item in draft.items}
    assert advise(set_captions(draft, texts)) == {}


@pytest.mark.parametrize("word", ["zorp", "dogzx", "ohwx", "[V]", "Müller-7", "зорп"])
def test_a_made_up_trigger_word_is_fine(word):
    assert lint_captions({"a": [f"{word} at home"]}, word, "subject") == {}


def test_a_set_without_a_trigger_word_gets_only_that_advice():
    [sentence] = lint("a zorp {}", trigger_word=" ")[""]
    assert sentence.startswith("There is no trigger word")


def test_equal_captions_are_told_once():
    [sentence] = lint("a fluffy zorp", "zorp")[""]
    assert sentence.startswith("All captions are the same")
    assert lint_captions({"a": ["zorp"], "b": []}, "zorp", "subject") == {}


def test_advice_follows_the_draft(tmp_path):
    draft = load_example(tmp_path, "zorp")
    draft = set_settings(draft, trigger_word="mibbit", kind="style")
    advice = advise(draft)
    assert {item.key for item in draft.items} | {""} == advice.keys()
    assert named(advice) == ["zorp"]
