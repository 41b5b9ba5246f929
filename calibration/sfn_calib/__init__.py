"""Lower precision for a bundle: fp16, bf16, int8 and fp8, gated in AUC before it is packed."""
