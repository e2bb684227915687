"""Guidance: captions of one image that say more of what is in it and less of what any caption says.

score(w) = log p(w | nothing) + g x (log p(w | image) - log p(w | nothing)),  made log-probabilities again

which is classifier-free guidance (Kornblith et al. 2023). "Nothing" is what the same network says to the null
image, a flat mid-grey picture, after the same beginning of a caption. A network whose training now and then
showed it that picture in the place of the photo has learnt to say there what captions say on average; another
has not, and guidance then steers it away from what it happens to say to grey.

g = 1 is decoding without guidance, above 1 captions are more specific and less like those of people, at 0 the
null image alone speaks. It is `contrast` with a weight of g - 1 and the null image as the only other, so each
hypothesis holds two rows of the decoder's cache: its own image, and the null image.
"""

from __future__ import annotations

import numpy as np

from tellapart.contrast import ContrastCache, sharpen
from tellapart.decode import Guide
from tellapart.errors import ShapeError
from tellapart.kv_cache import KVCache
from tellapart.types import FloatArray, PixelArray

NULL_GREY = 127
"""Value of every channel of the null image; training shows the same."""

FLOOR = 0.1
"""Above g = 1 a token must be plausible for the image: at least this share of the likeliest one's chance."""


def null_image(side: int) -> PixelArray:
    """The picture of nothing, (side, side, 3) uint8."""
    return np.full((side, side, 3), NULL_GREY, np.uint8)


def guided_cache(cross_kv: FloatArray, null_kv: FloatArray) -> ContrastCache[KVCache]:
    """A cache before the first step in which every image has the null image beside it.

    Args:
        cross_kv: (2L, k, H, N, D) float32, of the images.
        null_kv: (2L, 1, H, N, D) float32, of the null image.

    Raises:
        ShapeError: the two are not of one bundle.
    """
    if null_kv.shape != (cross_kv.shape[0], 1, *cross_kv.shape[2:]):
        raise ShapeError(f"the null image has cross_kv {null_kv.shape}, the images {cross_kv.shape}")
    count = cross_kv.shape[1]
    partners = np.column_stack([np.arange(count), np.full(count, count)])
    return ContrastCache(KVCache.empty(np.concatenate([cross_kv, null_kv], axis=1)), partners)


def guide_by(guidance: float) -> Guide[ContrastCache[KVCache]]:
    """The formula at the top of the module, for a cache that `contrast_step` has stepped.

    Args:
        guidance: g, at least 0.
    """
    # Below 1 the null image may also bring in what is not plausible for the image.
    floor = FLOOR if guidance > 1 else 0.0
    return lambda allowed, cache: sharpen(allowed, cache.others, weight=guidance - 1.0, floor=floor)
