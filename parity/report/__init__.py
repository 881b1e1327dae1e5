"""What a run found: the record that is kept, and how it is shown."""
