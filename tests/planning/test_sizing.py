"""A model's size follows from its text and from what the machine does in the time that is given."""

from __future__ import annotations

import pytest

from llmcore.planning.sizing import LADDER, MOST_EPOCHS, choose, loss
from llmcore.training.params import TrainParams

TWO_CORES = 1e11  # FLOP/s
MB = 1e6


def test_the_law_puts_the_measured_shapes_in_their_order() -> None:
    """docs/log.md: at equal time on the bundled corpus 1.1M parameters were ahead of 2.4M."""
    text, flops = 2.9e6, TWO_CORES * 285
    models = [shape.model(4096, 256) for shape in (LADDER[2], LADDER[3], LADDER[5])]
    losses = [loss(model.parameters, text, flops / model.flops_per_token(256) / text) for model in models]
    assert losses == sorted(losses)


def test_a_token_read_again_is_worth_less_than_a_new_one_and_more_than_none() -> None:
    assert loss(1e6, 1e7, 4) > loss(1e6, 4e7, 1)
    gains = [loss(1e6, 1e7, epochs) - loss(1e6, 1e7, 2 * epochs) for epochs in (1, 2, 4, 8, 16, 32)]
    assert all(gain > 0 for gain in gains) and gains == sorted(gains, reverse=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("megabytes", [0.05, 0.5, 5, 50, 500, 5000])
@pytest.mark.parametrize("minutes", [1, 10, 600])
def test_every_size_is_one_that_trains_within_its_time(device: str, megabytes: float, minutes: float) -> None:
    flops = TWO_CORES if device == "cpu" else 1e14
    size = choose(megabytes * MB, 0.9, 4000, flops, minutes, device)
    seconds = size.steps * size.batch * size.window * size.model.flops_per_token(size.window) / flops
    assert seconds <= 1.05 * minutes * 60
    assert size.batch % size.micro_batch == 0 and 0 < size.epochs <= MOST_EPOCHS and size.steps >= 1
    shape = {name: getattr(size.shape, name) for name in ("layers", "width", "heads", "kv_heads", "ffn_width")}
    TrainParams(**shape, batch=size.batch, micro_batch=size.micro_batch, epochs=size.epochs)


def test_more_text_and_more_time_make_no_smaller_model() -> None:
    def parameters(megabytes: float, minutes: float) -> int:
        return choose(megabytes * MB, 0.9, 4000, TWO_CORES, minutes, "cpu").model.parameters

    by_text = [parameters(megabytes, 600) for megabytes in (0.1, 1, 10, 100)]
    by_time = [parameters(10, minutes) for minutes in (2, 10, 60, 600)]
    assert by_text == sorted(by_text) and by_time == sorted(by_time) and by_text[0] < by_text[-1]


def test_short_documents_have_short_windows() -> None:
    assert choose(10 * MB, 0.9, 150, TWO_CORES, 10, "cpu").window == 64
    assert choose(10 * MB, 0.9, 50_000, TWO_CORES, 10, "cpu").window == 256
    assert choose(100 * MB, 0.9, 50_000, 1e14, 10, "cuda").window == 2048
