"""Lower precision for a bundle: fp16, bf16, int8 and fp8 graphs, gated in AUC before they are packed."""
