"""One step of GRPO by Melete and by TRL on the same model directory, and the arithmetic that neither can avoid."""
