"""The architectures, one a file, named as config.json's `model_type`."""
