"""Fine-tuning large models on one card: LoRA, quantised bases, what fits, saving and merging.

`attach` does in order what a run needs: `kbit` prepares a frozen base, `lora` adds trainable low-rank parts (`starts`
other than zero, `tokens` that are new), `fused` is the faster linear layer, `guards` checks what will train.
`artifact` saves what was trained and loads it on its own base only (`manifest`: what a folder says about itself);
`merge` writes a plain model, whose names and weights `plain` finds inside a wrapped one. `optimizers` holds the 8-bit
ones. `memory` predicts peak memory without torch.
"""

import logging

# bitsandbytes, which peft imports, suggests at its import a package that would fetch kernels
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
