"""A grader that cannot judge says so by raising; the rollout then has no reward, with the reason, instead of a zero."""


class GradingError(Exception):
    """Why an answer could not be judged: a timeout, a crash of the grader, a reference that cannot be read."""
