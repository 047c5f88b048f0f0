"""Fine-tuning large models on one card: LoRA, quantised bases, what fits, saving and merging.

`lora` adds trainable low-rank parts; `kbit` prepares a quantised base; `fused` is the faster linear layer; `guards`
checks what will train; `reference` switches adapters off; `artifact` saves and loads; `merge` gives a plain model;
`optimizers` holds the 8-bit ones; `memory` predicts peak memory without torch.
"""
