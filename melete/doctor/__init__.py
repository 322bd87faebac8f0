"""What `melete doctor` looks at: this machine, and a run. Everything is read, nothing changed.

lines.py    one finding: a level, what is so, and how to mend it
machine.py  cores, memory, disk, writable places, GPU, threads, the sandbox
extras.py   libraries, those of the optional extras too
run.py      a run: how far it came, the command that continues, its health, what differs from here
files.py    what is damaged among the files of a run
"""

from melete.doctor.lines import Level, Line
from melete.doctor.machine import look_at_machine
from melete.doctor.run import look_at_run

__all__ = ["Level", "Line", "look_at_machine", "look_at_run"]
