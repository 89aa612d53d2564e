"""`tandem compare`: train several presets on the same data and compare them."""
