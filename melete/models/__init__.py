"""Models in Hugging Face format: load, save, the bundled architecture, the balance of its experts."""
