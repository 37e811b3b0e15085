"""Jobs with mixed steps, samplers, guidance and numbers of images."""

from typing import Any

SAMPLERS = ("ddim", "euler", "euler_a", "dpmpp_2m_karras")
PROMPTS = ("a large red star on a blue background", "a small yellow circle on a purple background")
PAIR_EVERY = 8  # every 8th job asks for two images
UNGUIDED_EVERY = 3  # every 3rd job has no guidance: one row of a forward instead of two


def mixed_jobs(count: int, steps: tuple[int, int], name: str) -> list[dict[str, Any]]:
    """Always the same jobs, except for their uids, which begin with `name`.

    `steps` are the smallest and the largest number of steps of a job.
    """
    min_steps, max_steps = steps
    return [
        {
            "uid": f"{name}-{index}",
            "prompt": PROMPTS[index % len(PROMPTS)],
            "steps": min_steps + index * 11 % (max_steps - min_steps + 1),
            "sampler": SAMPLERS[index % len(SAMPLERS)],
            "scale": 1.0 if (index + 1) % UNGUIDED_EVERY == 0 else 7.5,
            "seed": index,
            "num_images": 2 if (index + 1) % PAIR_EVERY == 0 else 1,
        }
        for index in range(count)
    ]
