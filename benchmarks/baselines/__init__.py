"""What people write today, as carefully as its documentation says."""
