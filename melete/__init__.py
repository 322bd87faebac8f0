"""Melete post-trains language models: from a base model to a reasoning one."""
