"""Between text and tokens: chat templates, answers, numbers."""
