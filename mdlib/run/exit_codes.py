"""What `python -m mdlib` exits with; scripts and the tests rely on the numbers."""

DONE = 0
WRONG = 2  # wrong arguments, parameters or data
FAILED = 3  # a notebook failed
DIED = 4  # a kernel died or timed out
INTERRUPTED = 130  # Ctrl-C, as shells count it
