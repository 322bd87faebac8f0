"""What the machine has, and how its cores and its memory are used; told and set without torch.

processor.py   who made it and which instructions it has
threads.py     how many threads the mathematics uses, and work in lanes of one thread each
forks.py       work beside this process, in copies of it
allocator.py   how the C library keeps freed memory
"""
