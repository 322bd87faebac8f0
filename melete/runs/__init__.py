"""The files of a run, written so that no crash leaves half of one.

atomic.py       temporary file, flush, rename; errors with a remedy
directory.py    the run directory, its logs and its lock
checkpoints.py  complete or absent, checksummed, the last two kept
"""
