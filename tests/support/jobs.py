"""Jobs that share a worker: of mixed steps, samplers, guidance and number of pictures."""

from typing import Any

SAMPLERS = ("ddim", "euler", "euler_a", "dpmpp_2m_karras")
PROMPTS = ("a large red star on a blue background", "a small yellow circle on a purple background")
PAIR_EVERY = 8  # one job in so many asks for two pictures
UNGUIDED_EVERY = 3  # one job in so many has no guidance: one row of a forward instead of two


def mixed_jobs(count: int, steps: tuple[int, int], name: str) -> list[dict[str, Any]]:
    """Always the same jobs, but for their uids, which begin with `name`.

    `steps` are the fewest and the most steps of a job.
    """
    fewest, most = steps
    return [
        {
            "uid": f"{name}-{index}",
            "prompt": PROMPTS[index % len(PROMPTS)],
            "steps": fewest + index * 11 % (most - fewest + 1),
            "sampler": SAMPLERS[index % len(SAMPLERS)],
            "scale": 1.0 if (index + 1) % UNGUIDED_EVERY == 0 else 7.5,
            "seed": index,
            "num_images": 2 if (index + 1) % PAIR_EVERY == 0 else 1,
        }
        for index in range(count)
    ]
