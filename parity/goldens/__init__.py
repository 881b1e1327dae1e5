"""What programs that are not ours make of rows and settings, as data; the scripts that made it lie in tests/, beside the tests."""
