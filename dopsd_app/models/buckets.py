"""The sizes that pictures are cropped to."""

import math

from diffusers.training_utils import generate_aspect_ratio_buckets


def nearest_bucket(width: int, height: int, resolution: int, multiple: int) -> tuple[int, int]:
    """The (height, width) in pixels to crop a picture to: the bucket that keeps most of it.

    The buckets are those of diffusers: the area is about `resolution` squared, the shape within 1:2
    and 2:1, each side a multiple of `multiple`.
    """
    # The `find_nearest_bucket` of diffusers compares areas too: near the middle between two buckets it takes
    # the smaller one, though that cuts off more.
    buckets = generate_aspect_ratio_buckets(resolution, divisibility=multiple)
    return min(buckets, key=lambda size: abs(math.log(size[1] / size[0]) - math.log(width / height)))
