"""The options of samplers, their limits and variations, as a job names them."""

import pytest

from sd_core.errors import InvalidRequest
from sd_core.groups import MAX_SEED
from sd_core.pipeline.sample import Run
from sd_core.sampling.registry import sampler_names
from tests.support.job_fields import parse


def test_options_go_to_samplers_that_have_them() -> None:
    assert Run.of(parse(sampler="euler_a", eta=0.5, s_noise=1).request).options == {"eta": 0.5, "s_noise": 1.0}
    assert Run.of(parse(sampler="heun", s_churn=3, s_tmax=None).request).options == {"s_churn": 3.0}
    assert Run.of(parse(sampler="lms").request).options == {}
    with pytest.raises(InvalidRequest, match="s_churn: sampler Euler a has no such option; its options: eta, s_noise"):
        parse(sampler="Euler a", s_churn=1)


@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
def test_more_steps_than_a_sampler_knows_are_refused_at_the_door(sampler: str) -> None:
    assert parse(sampler=sampler, steps=50).request.steps == 50
    with pytest.raises(InvalidRequest, match="steps: 51 is too many, this sampler has 50 steps at most"):
        parse(sampler=sampler, steps=51)
    with pytest.raises(InvalidRequest, match=r"steps: 8 is too many.* 5 steps at most at strength 0.1"):
        parse(sampler=sampler, steps=8, image="aGk=", strength=0.1)


def test_every_schedule_takes_the_most_steps() -> None:
    for name in sampler_names():
        if not name.startswith(("lcm", "tcd")):
            assert parse(sampler=name, steps=150).sampler_name == name


def test_a_variation_seed_is_drawn_only_for_a_variation() -> None:
    assert parse().request.variation_seed is None
    assert parse(subseed=-1, subseed_strength=0).request.variation_seed is None
    drawn = {parse(subseed=-1, subseed_strength=0.1).request.variation_seed for _ in range(8)}
    assert len(drawn) > 1 and all(0 <= seed < 2**32 for seed in drawn)
    request = parse(seed=5, variation_seed=MAX_SEED, variation_strength=0.1, num_images=2).request
    assert (request.seeds, request.variation_seeds) == ([5, 5], [MAX_SEED, 0])


def test_the_largest_seed_is_taken_as_it_is() -> None:
    assert parse(seed=MAX_SEED).request.seed == MAX_SEED
