"""The one frozen base and the roles that stand on it: policy, reference, reward, value."""
