"""What people prefer: items to judge, a journal of their answers, a page with a keyboard, and export for training."""
