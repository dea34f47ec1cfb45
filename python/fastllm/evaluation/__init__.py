"""What a change of the weights costs: distributions compared with those of the original, tasks, and a gate."""
