import pytest

from sd_core.errors import InvalidRequest
from sd_core.text.tags import Tag, has_tags, read_tags

KNOWN = {
    "<lora:style>": Tag("style"),
    "<lora:style:0.7>": Tag("style", 0.7, 0.7),
    "<lora:style:0.7:0.2>": Tag("style", 0.7, 0.2),
    "<lora:style:0.7:0.2:4>": Tag("style", 0.7, 0.2, 4),
    "<lora:style:-1>": Tag("style", -1.0, -1.0),
    "<lora:style:te=0.5>": Tag("style", 0.5, 0.5),
    "<lora:style:unet=0.5>": Tag("style", 1.0, 0.5),
    "<lora:style:1:unet=0.5:te=0.25:dyn=8>": Tag("style", 0.25, 0.5, 8),
    "<lora: style : 1 >": Tag("style"),
    "<lyco:style:0.5>": Tag("style", 0.5, 0.5),
    "<lora:sub folder/my.style v1.2 (new):1>": Tag("sub folder/my.style v1.2 (new)"),
    "<lora:style:1:lbw=OUTALL>": Tag("style", blocks="OUTALL"),
    "<lora:style:1:w=1,0,0.5>": Tag("style", blocks="1,0,0.5"),
    "<lora:style:0.5:INALL>": Tag("style", 0.5, 0.5, blocks="INALL"),
    "<lora:style:0.5:0.25:lbw=1,0>": Tag("style", 0.5, 0.25, blocks="1,0"),
}


@pytest.mark.parametrize("text", KNOWN)
def test_a_tag_names_an_adapter_and_its_strength(text: str) -> None:
    tagged = read_tags(f"a cat {text}, red", "prompt")
    assert tagged.tags == (KNOWN[text],)
    assert tagged.text == "a cat , red"
    assert tagged.warnings == ()
    assert has_tags(text)


def test_all_tags_are_taken_in_order() -> None:
    tagged = read_tags("<lora:b:1>(a <lora:a:0.5> cat:1.2)<lora:b:1>", "prompt")
    assert [tag.name for tag in tagged.tags] == ["b", "a", "b"]
    assert tagged.text == "(a  cat:1.2)"


@pytest.mark.parametrize("text", ["a < b > c", "<lora>", "<lora:>", "<lora", "lora:x:1", "<:x>", "(a:1.2)", ""])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert read_tags(text, "prompt").text == text
    assert not has_tags(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<lora::1>", r"prompt: '<lora::1>': the adapter's name is missing"),
        ("<lora:te=1>", "the adapter's name is missing"),
        ("<lora:x:strong>", r"prompt: '<lora:x:strong>': weights are numbers from -4 to 4"),
        ("<lora:x:5>", "weights are numbers from -4 to 4"),
        ("<lora:x:1e9>", "weights are numbers"),
        ("<lora:x:nan>", "weights are numbers"),
        ("<lora:x:1:inf>", "weights are numbers"),
        ("<lora:x:1:1:0>", "dyn is the number of ranks"),
        ("<lora:x:1:dyn=2.5>", "dyn is the number of ranks"),
        ("<lora:x:1:dyn=" + "9" * 5000 + ">", "dyn is the number of ranks"),
    ],
)
def test_what_is_wrong_with_a_tag_is_said(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        read_tags(text, "prompt")
    assert len(str(caught.value)) < 200


def test_other_tags_and_options_are_left_out_with_a_warning() -> None:
    tagged = read_tags("<hypernet:x:1> a <lora:y:1:start=5:stop=9>", "hires.prompt")
    assert tagged.text == " a "
    assert tagged.tags == (Tag("y"),)
    assert tagged.warnings == (
        "hires.prompt: '<hypernet:x:1>' was left out: there are no tags of this kind here",
        "hires.prompt: '<lora:y:1:start=5:stop=9>': start= is not supported and did nothing",
        "hires.prompt: '<lora:y:1:start=5:stop=9>': stop= is not supported and did nothing",
    )


def test_many_open_tags_take_linear_time() -> None:
    text = "<lora:" * 100_000
    assert read_tags(text, "prompt").text == text
