"""The terms of a reward: models, functions, rules and remote scorers, weighted into one."""
