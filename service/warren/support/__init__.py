"""Support tools without any knowledge of tasks: loops, threads, times, logs."""
