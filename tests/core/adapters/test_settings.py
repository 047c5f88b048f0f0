"""Settings of adapters that cannot work together."""

import pytest

from lightbox.config import AdapterConfig
from lightbox.errors import RequestError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant": "nf4"}, "Quantised weights are frozen"),
        ({"modules": ["router"]}, "adapter.modules is router and adapter.kind is none. Every parameter trains then"),
        ({"kind": "lora", "init": "loftq"}, "the error that 4-bit storage makes"),
        ({"kind": "lora", "quant": "int8", "use_dora": True}, "8-bit storage does not give back"),
        ({"kind": "lora", "dropout_prob": 1.0}, "some inputs must stay"),
        ({"kind": "lora", "r": 0}, "adapter.r is 0"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(settings, message):
    with pytest.raises(RequestError, match=message):
        AdapterConfig(**settings)
