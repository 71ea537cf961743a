"""Tools that know nothing of tasks: loops, threads, times, logs."""
