"""Watching the prediction log: every row once, window by window, with alarms that keep a stated budget."""
