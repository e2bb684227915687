"""Drawing captions: the distribution, the buffers against the growing cache, and rows packed anew."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tellapart_model.compact import CompactPair  # noqa: E402
from tellapart_model.config import END_ID, PAD_ID, START_ID, UNKNOWN_ID, CompactConfig  # noqa: E402
from tellapart_model.generate import draw, forbid_specials, greedy, sample  # noqa: E402

LONGEST = 9


def toy_pair() -> CompactPair:
    torch.manual_seed(0)
    pair = CompactPair(CompactConfig.toy(64)).eval()
    with torch.no_grad():
        for name, parameter in pair.decoder.named_parameters():
            if name.endswith(("_out.weight", "cross_query.weight")):
                parameter.mul_(12)
        pair.decoder.logit_bias[END_ID] += 4  # so that captions end here and there
    return pair


def toy_keys(pair: CompactPair, batch: int) -> torch.Tensor:
    config = pair.config
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2 * config.layers, batch, config.heads, 4, config.head_width, generator=generator)


def test_shares_of_drawn_tokens_are_the_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([2.0, float("-inf"), 1.0, 0.0, float("-inf")])
    drawn = draw(logits.expand(40_000, 5))
    shares = torch.bincount(drawn, minlength=5) / 40_000
    assert shares[1] == shares[4] == 0.0
    assert float((shares - logits.softmax(0)).abs().max()) < 0.01  # four standard errors


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24, 1.0])
def test_the_ends_of_the_uniform_draw_never_give_a_barred_token(
    uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.full_like(like, uniform))
    logits = forbid_specials(torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)))
    logits[:, -1] = float("-inf")
    drawn = draw(logits)
    assert torch.isfinite(logits.gather(1, drawn[:, None])).all()


def test_buffers_give_the_logits_of_the_growing_cache() -> None:
    pair, keys = toy_pair(), toy_keys(toy_pair(), 3)
    config = pair.config
    ids = torch.randint(4, 64, (3, LONGEST), generator=torch.Generator().manual_seed(2))
    past = pair.decoder.empty_past(3)
    buffers = torch.zeros(2 * config.layers, 3, config.heads, LONGEST, config.head_width)
    with torch.no_grad():
        for position in range(LONGEST):
            expected, past = pair.decoder.step(ids[:, position : position + 1], past, keys)
            found = pair.decoder.step_into(ids[:, position : position + 1], position, buffers, keys)
            torch.testing.assert_close(found, expected)


def test_rows_packed_anew_keep_their_captions() -> None:
    pair, keys = toy_pair(), toy_keys(toy_pair(), 24)
    together = greedy(pair, keys, max_new_tokens=LONGEST)
    lengths = set()
    for row in range(24):
        alone = greedy(pair, keys[:, row : row + 1], max_new_tokens=LONGEST)[0]
        assert torch.equal(together[row, : len(alone)], alone)
        assert (together[row, len(alone) :] == PAD_ID).all()
        lengths.add(len(alone))
    assert len(lengths) > 3, "captions of one length would prove nothing"


def test_a_low_temperature_draws_the_likeliest_caption() -> None:
    pair, keys = toy_pair(), toy_keys(toy_pair(), 8)
    torch.manual_seed(3)
    cold = sample(pair, keys, max_new_tokens=LONGEST, temperature=1e-3)
    likeliest = greedy(pair, keys, max_new_tokens=LONGEST)
    assert torch.equal(cold, likeliest[:, : cold.shape[1]])
    warm = sample(pair, keys, max_new_tokens=LONGEST)
    assert not torch.equal(warm, likeliest[:, : warm.shape[1]])


def test_specials_are_never_drawn() -> None:
    pair, keys = toy_pair(), toy_keys(toy_pair(), 64)
    torch.manual_seed(4)
    drawn = sample(pair, keys, max_new_tokens=LONGEST, temperature=50.0)
    assert START_ID not in drawn.unique().tolist()
    assert UNKNOWN_ID not in drawn.unique().tolist()
