"""What a user writes, and what can serve as an agent: functions, classes, programs, servers."""
