"""The pool of agents: lends one to a task, brings ill ones back, and stops idle ones."""
