import pytest

from sd_core.adapters.blocks import ALL, PRESETS, WITH_ATTENTION, Blocks

SEVENTEEN = ",".join(str(number) for number in range(-1, 16))


def test_seventeen_numbers_are_of_the_blocks_with_attention() -> None:
    blocks = Blocks.parse(SEVENTEEN)
    assert blocks.base == -1
    expected = {
        "input_blocks.0.0": 0,  # of the blocks that are not listed, nothing stays
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q": 0,
        "input_blocks.2.1.proj_in": 1,
        "input_blocks.3.0.op": 0,
        "input_blocks.4.0.in_layers.2": 2,
        "input_blocks.8.1.proj_out": 5,
        "input_blocks.11.0.in_layers.2": 0,
        "middle_block.1.proj_in": 6,
        "output_blocks.2.0.in_layers.2": 0,
        "output_blocks.3.1.proj_in": 7,
        "output_blocks.11.1.proj_in": 15,
        "time_embed.0": 1,
        "out.2": 1,
    }
    assert {name: blocks.of(name) for name in expected} == expected


def test_twenty_six_numbers_are_of_all_blocks() -> None:
    blocks = Blocks.parse(" , ".join(str(number / 2) for number in range(26)))
    names = ["input_blocks.0.0", "input_blocks.11.0.x", "middle_block.0.x", "output_blocks.0.0.x", "output_blocks.11.x"]
    assert [blocks.of(name) for name in names] == [0.5, 6.0, 6.5, 7.0, 12.5]
    assert blocks.base == 0


def test_presets_are_known_by_name() -> None:
    assert {len(factors) for factors in PRESETS.values()} == {len(WITH_ATTENTION)}
    assert Blocks.parse("inall") == Blocks.parse("1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0")
    assert Blocks.parse("ALL0.5").of("middle_block.1.proj_in") == 0.5
    assert Blocks.parse("NONE").factors == (0,) * len(ALL)


def test_a_deeper_network_keeps_what_has_no_number() -> None:
    assert Blocks.parse("NONE").of("input_blocks.12.0.x") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3", "has 3 numbers; 17 or 26 are needed, or one of NONE, ALL"),
        ("UNKNOWN", "'UNKNOWN' is not a number from -16 to 16, or a preset"),
        (SEVENTEEN + ",", "'' is not a number"),
        ("nan" + ",1" * 16, "'nan' is not a number"),
        ("1e9" + ",1" * 16, "'1e9' is not a number"),
        ("R" + ",1" * 16, "'R' is not a number"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Blocks.parse(text)
