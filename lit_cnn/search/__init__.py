"""Many runs under one: which options are tried, who trains them, what they come to."""
