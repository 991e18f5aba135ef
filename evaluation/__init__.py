"""What came of it: judges, the sandbox, tasks, the harness, statistics."""
