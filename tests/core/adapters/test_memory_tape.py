"""The tape: what is in memory together, compared with torch's own allocations where torch can say."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightbox.adapters.memory.setting import Setting
from lightbox.adapters.memory.step import Step
from lightbox.adapters.memory.tape import Tape
from lightbox.adapters.live_bytes import peak_bytes

ROWS, WIDTH, HIDDEN = 50, 16, 40


def loss_of(step, x):
    return step.run([x], (1, 1, 4))


def given(step, *, needs_grad):
    x = step.given(ROWS, WIDTH, 4, "inputs")
    x.needs_grad = needs_grad
    return x


def test_memory_goes_with_the_last_name_of_a_value():
    tape = Tape()
    first = tape.allocate(100, "a")
    second = tape.allocate(30, "b")
    del first
    third = tape.allocate(50, "c")
    assert (tape.meter.now, tape.meter.peak, tape.meter.at_peak) == (80, 130, {"a": 100, "b": 30})
    assert (second.size, third.size) == (30, 50)


def test_a_value_that_an_operation_saved_stays_until_its_backward_pass():
    step = Step()
    x = given(step, needs_grad=True)
    y = step.run([x], (ROWS, WIDTH, 4), saves=[kept := step.run([x], (ROWS, WIDTH, 4))])
    del kept
    before = step.meter.now
    assert before == 3 * ROWS * WIDTH * 4
    loss = loss_of(step, y)
    del y
    step.backward(loss)
    assert step.nodes == []
    assert step.meter.now == 2 * ROWS * WIDTH * 4 + 4  # the input, its gradient, the loss


def test_without_a_graph_nothing_is_saved():
    step = Step()
    x = given(step, needs_grad=True)
    with step.without_graph():
        y = step.activation(step.activation(x, "gelu"), "gelu")
    assert step.nodes == []
    assert not y.needs_grad
    assert step.meter.now == 2 * ROWS * WIDTH * 4


def test_a_gradient_that_arrives_twice_is_summed_and_not_kept_twice():
    step = Step()
    x = given(step, needs_grad=True)
    y = step.add(step.activation(x, "gelu"), step.activation(x, "gelu"))
    loss = loss_of(step, y)
    del y
    step.backward(loss)
    assert list(step.gradients) == [x.key]
    assert step.gradients[x.key].size == x.size


def mlp(step, x, layers, *, checkpoints=False):
    for index in range(layers):

        def layer(x=x, index=index):
            hidden = step.activation(step.linear(x, HIDDEN, f"{index}.up"), "gelu")
            return step.add(x, step.linear(hidden, WIDTH, f"{index}.down"))

        x = step.checkpointed(layer, [x]) if checkpoints else layer()
    return x


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer():
    peaks = {}
    for checkpoints in (False, True):
        for layers in (4, 8):
            step = Step(setting=Setting(trains_all=False))
            x = given(step, needs_grad=True)
            step.backward(loss_of(step, mlp(step, x, layers, checkpoints=checkpoints)))
            peaks[checkpoints, layers] = step.meter.peak
    value, inner = ROWS * WIDTH * 4, ROWS * HIDDEN * 4
    assert peaks[False, 8] - peaks[False, 4] == 4 * inner  # what GELU saved
    assert peaks[True, 8] - peaks[True, 4] == 4 * value


def test_a_checkpointed_layer_trains_the_same_weights_once_each():
    step = Step()
    step.backward(loss_of(step, mlp(step, given(step, needs_grad=True), 3, checkpoints=True)))
    assert step.meter.parts["gradients"] == 3 * 2 * WIDTH * HIDDEN * 4
    assert step.nodes == []


class Network(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN, bias=bias), nn.Linear(HIDDEN, WIDTH, bias=bias)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_a_small_network_takes_on_the_tape_what_it_takes_in_torch(bias, trains):
    torch.manual_seed(0)
    model = Network(bias).requires_grad_(trains)
    x = torch.randn(ROWS, WIDTH, requires_grad=True)

    def work():
        y = model(x)
        y.backward(torch.ones_like(y))
        x.grad = None
        model.zero_grad(set_to_none=True)

    work()
    step = Step(setting=Setting(trains_all=trains))
    value = given(step, needs_grad=True)
    normed = step.layer_norm(value, "norm")
    hidden = step.activation(step.linear(normed, HIDDEN, "up", has_bias=bias), "gelu")
    del normed
    result = step.add(value, step.linear(hidden, WIDTH, "down", has_bias=bias))
    del hidden
    step.backward(result)
    assert step.meter.peak - value.size == peak_bytes(work)


def test_a_quantised_matrix_is_there_in_full_only_while_it_is_multiplied():
    step = Step(setting=Setting(item=2, quant="nf4", trains_all=False))
    x = step.given(ROWS, 256, 2, "inputs")
    x.needs_grad = True
    with step.within("layer", "linears"):
        y = step.linear(x, 512, "up")
    assert step.meter.at_peak["dequantised weights"] == 256 * 512 * 2 + 4 * 256 * 512 // 64
    assert step.meter.parts["dequantised weights"] == 0
    assert y.size == ROWS * 512 * 2
    stored = step.weights["layer.up.weight"].size
    assert stored == 256 * 512 // 2 + 256 * 512 // 64 + 4 * 8 + 4 * (16 + 256 + 1)
