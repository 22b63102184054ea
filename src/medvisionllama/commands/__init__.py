"""One file a command: its options, and the few lines that hand them on. Each imports what it needs when it runs."""

DONE, FAULTS_FOUND, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
